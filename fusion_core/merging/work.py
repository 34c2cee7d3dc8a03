"""Jobs that hand their work to threads in steps, several of them on their way at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

# What one tensor needs: between two steps it yields the futures that the next one waits for.
Job = Iterator[list[Future]]

# More threads would wait for memory, not compute.
MAX_THREADS = 8
# Small tensors are begun until they hold this much; of larger ones, two.
BEGUN_BYTES = 48 << 20


def run_jobs(jobs: Iterable[tuple[int, Job]], capacity_bytes: int, when_finished: Callable[[], None]) -> None:
    """Run jobs in order, and begin the next ones before the last is done, so that no thread is without work.

    Parameters
    ----------
    jobs : iterable of (int, Job)
        Each with the bytes that it holds while it runs.
    capacity_bytes : int
        What the running jobs hold together at most; a larger one runs alone.
    when_finished : callable
        Called after each job.

    Notes
    -----
    Only this thread waits, and only for futures whose functions wait for nothing: whatever fails, nobody is left
    waiting for anybody. Which job goes on next depends on sizes alone, not on how fast the threads are.
    """
    upcoming = iter(jobs)
    following = next(upcoming, None)
    running: deque[tuple[int, Job, list[Future]]] = deque()
    held = 0
    while following is not None or running:
        while following is not None and _has_room(following[0], len(running), held, capacity_bytes):
            size, job = following
            held += size
            running.append((size, job, next(job, [])))
            following = next(upcoming, None)
        # Threads take work in the order in which it came: what was handed out first is done first.
        size, job, futures = running.popleft()
        for future in futures:
            future.result()
        step = next(job, None)
        if step is not None:
            running.append((size, job, step))
            continue
        held -= size
        when_finished()


def _has_room(size: int, running: int, held: int, capacity: int) -> bool:
    if running == 0:
        return True
    return held + size <= capacity and (running == 1 or held + size <= BEGUN_BYTES)


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that are gone after the block: after an error, with what had not begun dropped."""
    # The blocks are spread over threads already; torch's own would fight with them over the same cores.
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="merge")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(torch_threads)


def thread_count() -> int:
    """Return how many threads to spread blocks over."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_THREADS, available))
