"""Weight files mapped into memory: a tensor's bytes are read where the page cache holds them, without a copy."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import numpy as np

from fusion_core.errors import MergeError

# Linux 5.14 and later; Python's mmap module does not name it.
MADV_POPULATE_READ = 22


class MappedFile:
    """One file, its pages mapped when they are first read.

    Parameters
    ----------
    path : Path
        A file that is not empty.

    Notes
    -----
    Reading into buffers of our own would move every byte through memory three times instead of once, and memory is
    what a merge waits for. What is mapped counts as this process's memory until `release`.
    """

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._descriptor = os.dup(file.fileno())
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)

    def view(self, offset: int, size: int) -> np.ndarray:
        """Return some of the file's bytes, uint8 [size], read-only and not yet read."""
        return self._bytes[offset : offset + size]

    def fetch(self, offset: int, size: int) -> None:
        """Begin to read bytes from the disk into the page cache, without waiting for it."""
        if hasattr(os, "posix_fadvise") and size:
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, offset: int, size: int) -> None:
        """Wait until bytes are in memory.

        Raises
        ------
        MergeError
            If they cannot be read; merely looking at them would end the process.
        """
        if LIBRARY is None or not size:
            return
        start = offset - offset % mmap.PAGESIZE
        # ctypes lets other threads run meanwhile; the mmap module's own call does not.
        if LIBRARY.madvise(self._bytes.ctypes.data + start, offset + size - start, MADV_POPULATE_READ) == 0:
            return
        number = ctypes.get_errno()
        # Kernels that do not know the advice read page by page as the values are looked at.
        if number != errno.EINVAL:
            raise MergeError(
                f"{self._path} could not be read any more at byte {offset:,} ({os.strerror(number)}): it became "
                "shorter or its disk failed; nothing may write to it meanwhile."
            )

    def release(self, offset: int, size: int) -> None:
        """Take bytes out of this process's memory; the page cache keeps them."""
        # Whole pages only: those at the ends also hold a neighbour's bytes.
        start = offset + -offset % mmap.PAGESIZE
        stop = (offset + size) - (offset + size) % mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and start < stop:
            self._memory.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Close the file; its mapping goes with the last view of it."""
        os.close(self._descriptor)


def _system_library() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


LIBRARY = _system_library()
