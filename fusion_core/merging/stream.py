"""Reads tensors of several checkpoints ahead of the arithmetic, within a fixed number of bytes."""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_core.merging.checkpoint import FLOAT_STORAGE, Checkpoint, TensorEntry

ALIGNMENT_BYTES = 64

# Small tensors are read ahead until they hold this much; of larger ones, one is worked on and the next one read.
READ_AHEAD_BYTES = 48 << 20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as read: row 0 is the pivot's, the others the targets'; ``span`` goes back to the stream."""

    entry: TensorEntry
    rows: np.ndarray
    span: _Span


@dataclass(frozen=True)
class _Span:
    start: int
    stop: int


class TensorStream:
    """A thread that reads each tensor of the pivot and all targets, in the order of the pivot's files.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        The pivot, then the targets.
    capacity_bytes : int
        Bytes held at most by tensors that were read and not yet given back; at least one tensor of every checkpoint.

    Notes
    -----
    Memory is one ring that is used again and again: fresh pages for every tensor would cost as much as reading them.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], capacity_bytes: int):
        self._checkpoints = checkpoints
        self._memory = mmap.mmap(-1, capacity_bytes + ALIGNMENT_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._live: list[_Span] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self._ready: queue.SimpleQueue[StoredTensor | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read_all, name="tensor-stream", daemon=True)
        self._thread.start()

    def next(self, wait: bool) -> StoredTensor | None:
        """Return the next tensor, None at the end.

        Raises
        ------
        queue.Empty
            If it is not read yet and ``wait`` is false.
        BaseException
            What stopped the reading.
        """
        item = self._ready.get(block=wait)
        if isinstance(item, BaseException):
            raise item
        return item

    def give_back(self, tensor: StoredTensor) -> None:
        """Let the tensor's memory be used for another."""
        with self._changed:
            self._live.remove(tensor.span)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def _read_all(self) -> None:
        try:
            for name, entry in self._checkpoints[0].tensors.items():
                span = self._allocate(entry.size_bytes * len(self._checkpoints))
                if span is None:
                    return
                flat = self._bytes[span.start : span.start + entry.size_bytes * len(self._checkpoints)]
                rows = flat.reshape(len(self._checkpoints), entry.size_bytes)
                for row, checkpoint in zip(rows, self._checkpoints, strict=True):
                    checkpoint.read_into(name, row.data)
                if entry.is_float:
                    rows = flat.view(FLOAT_STORAGE[entry.dtype]).reshape(len(self._checkpoints), entry.count)
                self._ready.put(StoredTensor(entry, rows, span))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def _allocate(self, size_bytes: int) -> _Span | None:
        size_bytes = max(-(-size_bytes // ALIGNMENT_BYTES), 1) * ALIGNMENT_BYTES
        with self._changed:
            while not self._is_stopped:
                start = self._find_room(size_bytes)
                if start is not None:
                    span = _Span(start, start + size_bytes)
                    self._live.append(span)
                    return span
                self._changed.wait()
        return None

    def _find_room(self, size_bytes: int) -> int | None:
        held = sum(span.stop - span.start for span in self._live)
        if len(self._live) > 1 and held + size_bytes > READ_AHEAD_BYTES:
            return None
        # The lowest free place: memory that was used a moment ago is still in the cache.
        start = 0
        for span in sorted(self._live, key=lambda span: span.start):
            if start + size_bytes <= span.start:
                return start
            start = span.stop
        return start if start + size_bytes <= len(self._bytes) else None
