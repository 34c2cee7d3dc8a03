"""Digests of a model folder's files; each file is read once a process."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

HASH_BLOCK_BYTES = 8 << 20


def file_names(folder: Path, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """List the files of a folder that match, sorted."""
    return tuple(sorted(path.name for pattern in patterns for path in folder.glob(pattern)))


def digest_of_files(folder: Path, names: tuple[str, ...], extra: str) -> str:
    """Return a SHA-256 (hex) over the files that are there, by name and content, and some text."""
    digest = hashlib.sha256(extra.encode())
    for name in names:
        path = folder / name
        if path.is_file():
            status = path.stat()
            digest.update(f"{name} {_file_digest(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    # Size and time are in the cache's key so that a file changed within a process is read again.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
