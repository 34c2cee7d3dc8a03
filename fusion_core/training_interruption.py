"""A machine that is taken away says so with SIGTERM: finish the step, write a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interruption:
    """Notes SIGTERM instead of dying of it, while the training loop runs.

    Signals reach the main thread alone; in another thread nothing is caught, and the process's own handling stays.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interruption:
        self._catches = threading.current_thread() is threading.main_thread()
        if self._catches:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._catches:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self.requested = True
