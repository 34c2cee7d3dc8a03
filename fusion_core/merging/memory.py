"""Memory for the tensors that are held, used again and again."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

ALIGNMENT_BYTES = 64


class TensorMemory:
    """So many bytes, of which tensors take parts and give them back; for one thread.

    Parameters
    ----------
    capacity_bytes : int
        Only what was used at least once is taken from the system.

    Notes
    -----
    Fresh pages for every tensor would cost as much as reading it, and memory that the allocator keeps for later would
    come on top of the next tensor's.
    """

    def __init__(self, capacity_bytes: int):
        self._memory = mmap.mmap(-1, max(capacity_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._taken: dict[int, int] = {}

    @contextmanager
    def room(self, size: int) -> Iterator[np.ndarray]:
        """Lend bytes, uint8 [size], for the length of the block; where no part is large enough, fresh ones."""
        # An empty tensor has no place, and would be taken for the one that lies there.
        start = self._lowest_free(size) if size else None
        if start is None:
            yield np.empty(size, dtype=np.uint8)
            return
        self._taken[start] = -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        try:
            yield self._bytes[start : start + size]
        finally:
            del self._taken[start]

    def close(self) -> None:
        """Give all of it back to the system; what parts held is lost."""
        # By name: parts that something still refers to would keep it.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def _lowest_free(self, size: int) -> int | None:
        # The lowest: what was used a moment ago is still in the cache.
        start = 0
        for taken, taken_size in sorted(self._taken.items()):
            if start + size <= taken:
                return start
            start = taken + taken_size
        return start if start + size <= len(self._bytes) else None
