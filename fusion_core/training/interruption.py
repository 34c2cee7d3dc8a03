"""A machine that is taken away says so with SIGTERM: finish the step, write a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from fusion_core.errors import TrainingInterruptedError


class Interruption:
    """Answers SIGTERM with a TrainingInterruptedError: at once, or where there is a step to finish when it is finished.

    Signals reach the main thread alone; in another thread nothing is caught, and the process's own handling stays.

    Raises
    ------
    TrainingInterruptedError
        On leaving, after a SIGTERM outside `noted`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._only_notes = False

    def __enter__(self) -> Interruption:
        self._catches = threading.current_thread() is threading.main_thread()
        if self._catches:
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._catches:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
        if isinstance(error, _AskedToStop):
            raise TrainingInterruptedError(
                "Training was asked to stop (SIGTERM) while no step was under way; the same command goes on from the "
                "last checkpoint."
            ) from None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only set `requested`, for the caller to look at, while this is open."""
        self._only_notes = True
        try:
            yield
        finally:
            self._only_notes = False

    def _take(self, signal_number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._only_notes:
            # A second signal must not disturb the cleaning up after this one.
            self._only_notes = True
            raise _AskedToStop


class _AskedToStop(BaseException):
    """No Exception: libraries that catch those while a model loads would take it for a broken model."""
