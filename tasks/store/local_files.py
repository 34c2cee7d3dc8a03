"""Local files of the store and its cache: checksums while copying, and one sentence for a file system's errors."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from fusion_core.errors import FusionError, StoreError

CHUNK_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Say whether an error, of whatever library, is about a disk without room."""
    full = isinstance(error, OSError) and error.errno in FULL_DISK
    # Libraries that are not written in Python say it in words alone.
    return full or os.strerror(errno.ENOSPC) in str(error) or "disk is full" in str(error)


@contextmanager
def full_disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn what any library raises for want of room into a `StoreError`; ``what`` is what was going on."""
    try:
        yield
    except FusionError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise StoreError(
            f"{what} has no room left: the disk of {folder} is full; free some space there and run the same command "
            "again, which goes on from here."
        ) from error


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` with one sentence; `action` says what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            reason = "the disk is full; free some space there, or choose another place"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "this user has no permission; change the folder's owner or mode, or choose another place"
        else:
            reason = error.strerror or type(error).__name__
        raise StoreError(f"{action} failed: {reason}.") from error


class Readable(Protocol):
    """Anything that is read in chunks: a file, or the body of an answer."""

    def read(self, size: int, /) -> bytes: ...


def copy_and_hash(source: Readable, target: BinaryIO | None = None) -> str:
    """Copy `source` to `target`, or only read it, and return the SHA-256 (hex) of the bytes."""
    digest = hashlib.sha256()
    update_digest(digest, source, target)
    return digest.hexdigest()


def update_digest(digest: hashlib._Hash, source: Readable, target: BinaryIO | None = None) -> None:
    """Add what is left of `source` to a digest, and copy it to `target` where one is given."""
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file.

    Raises
    ------
    StoreError
        The file cannot be read.
    """
    with disk_errors(f"Reading {path}"), path.open("rb") as file:
        return copy_and_hash(file)


def link_or_copy(path: Path, to: Path) -> None:
    """Give a file a second name, or a copy where the disk has no links or is another one; an old file there goes."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
