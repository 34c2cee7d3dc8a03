"""One file of weights, read into memory of one's own."""

from __future__ import annotations

import os
from pathlib import Path

from fusion_core.errors import MergeError


class WeightFile:
    """One file, open for reading.

    Parameters
    ----------
    path : Path

    Notes
    -----
    Never mapped: looking at mapped bytes ends the process where the disk fails or the file became shorter, and costs an
    address translation for every 4 KiB, which takes longer than to copy them into a buffer that stays in the cache.
    """

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def fetch(self, offset: int, size: int) -> None:
        """Begin to read bytes from the disk into the page cache, without waiting for it."""
        if hasattr(os, "posix_fadvise") and size:
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from ``offset`` on; threads may do so at the same time.

        Raises
        ------
        MergeError
            If they cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                read = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(offset + done, str(error.strerror)) from error
            if read == 0:
                raise self._unreadable(offset + done, "the file ends there")
            done += read

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _unreadable(self, offset: int, reason: str) -> MergeError:
        return MergeError(
            f"{self._path} could not be read any more at byte {offset:,} ({reason}): it became shorter or its disk "
            "failed; nothing may write to it meanwhile."
        )
