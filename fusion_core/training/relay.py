"""Whole checkpoints handed to whoever keeps them elsewhere, while training goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

PINNED = ".handed-over-"


class CheckpointRelay:
    """Calls a function with each checkpoint in a thread of its own, one after the other.

    A checkpoint is pinned by hard links, so that the run may remove it meanwhile; one that is still waiting when the
    next is there is left out. Leaving waits for the last one.

    Parameters
    ----------
    receive : callable or None
        Called with the pinned folder, whose name is the checkpoint's own; None to hand over nothing.
    """

    def __init__(self, receive: Callable[[Path], None] | None) -> None:
        self._receive = receive
        self._waiting: tuple[Path, Future[None]] | None = None

    def __enter__(self) -> CheckpointRelay:
        self._thread = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None and self._waiting is not None:
            self._waiting[1].result()

    def offer(self, checkpoint: Path) -> None:
        """Hand over a checkpoint's folder; raises what the function raised on an earlier one."""
        if self._receive is None:
            return
        if self._waiting is not None:
            pinned, future = self._waiting
            if future.cancel():
                shutil.rmtree(pinned.parent, ignore_errors=True)
            elif future.done():
                future.result()
        pinned = checkpoint.parent / f"{PINNED}{checkpoint.name}" / checkpoint.name
        shutil.rmtree(pinned.parent, ignore_errors=True)
        try:
            shutil.copytree(checkpoint, pinned, copy_function=os.link)
        except FileNotFoundError:
            # The run was faster and has removed it; the next one comes.
            shutil.rmtree(pinned.parent, ignore_errors=True)
            return
        self._waiting = pinned, self._thread.submit(self._hand_over, pinned)

    def _hand_over(self, pinned: Path) -> None:
        assert self._receive is not None
        try:
            self._receive(pinned)
        finally:
            shutil.rmtree(pinned.parent, ignore_errors=True)
