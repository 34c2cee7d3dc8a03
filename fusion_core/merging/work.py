"""Work on tensors spread over threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

import torch

from fusion_core.merging.stream import StoredTensor
from fusion_core.merging.values import TensorValues

# More threads would wait for memory, not compute.
MAX_THREADS = 8


class TensorWork:
    """A tensor on its way: the sums that were begun, then the blocks being merged, then a last step."""

    def __init__(self, tensor: StoredTensor, values: TensorValues | None, sums: list[Future]):
        self.tensor = tensor
        self.values = values
        self.sums = sums
        self.merging: list[Future] = []
        self.when_merged: Callable[[], None] | None = None

    def finish(self) -> None:
        """Wait for the blocks, raise what went wrong in them, and take the last step."""
        for future in self.merging:
            future.result()
        if self.when_merged is not None:
            self.when_merged()

    def cancel(self) -> None:
        """Drop what has not begun, and wait for what has: it still reads the stream's memory and writes to files."""
        for future in (*self.sums, *self.merging):
            future.cancel()
        wait((*self.sums, *self.merging))


def when_all_done(futures: list[Future], then: Callable[[], None]) -> None:
    """Call ``then`` in whichever thread finishes last, also after errors; at once where there is no future."""
    if not futures:
        then()
        return
    left = len(futures)
    lock = threading.Lock()

    def one_is_done(_: Future) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if is_last:
            then()

    for future in futures:
        future.add_done_callback(one_is_done)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread within each of ours."""
    # The blocks are spread over threads already; torch's own would fight with them over the same cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def thread_count() -> int:
    """Return how many threads to spread blocks over."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_THREADS, available))
