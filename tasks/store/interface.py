"""The object store: one small interface over content-addressed keys.

Objects appear whole or not at all, and each carries the SHA-256 of the bytes that were sent, so that an unfinished
publication is resumed by checksums alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusion_core.errors import StoreError


class MissingObjectError(StoreError):
    """There is no object at a key."""


class BrokenObjectError(StoreError):
    """An object is missing, truncated or altered against its manifest; only it needs to be computed again.

    Attributes
    ----------
    address, name : str
        The publication, and the object inside it (``manifest.json`` for the manifest itself).
    found : str
        What is wrong with it.
    """

    def __init__(self, address: str, name: str, found: str) -> None:
        # All arguments go to the base class, so that the error survives pickling between processes.
        super().__init__(address, name, found)
        self.address, self.name, self.found = address, name, found

    def __str__(self) -> str:
        return (
            f"The object {self.name!r} of {self.address} is not what was published: {self.found}; "
            "discard it and run again, which computes it anew."
        )


@dataclass(frozen=True)
class ObjectInfo:
    """One object: key, size in bytes, time of writing in seconds since the epoch, recorded SHA-256 (hex).

    The checksum is None where none was recorded, and always in listings: only `Store.stat` looks it up.
    """

    key: str
    size: int
    modified: float
    sha256: str | None = None


class Store(ABC):
    """Objects under keys such as ``distributions/<model>/<dataset>/<spec>/shard-00000.parquet``.

    Every method refuses keys that `check_key` refuses, and raises `StoreError` with one sentence on failure.
    """

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return a small object; `MissingObjectError` when there is none."""

    @abstractmethod
    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; with `if_absent` return False, changing nothing, when the key is taken."""

    @abstractmethod
    def upload(self, key: str, path: Path, *, if_absent: bool = False, sha256: str | None = None) -> bool:
        """Copy a local file into the store; `sha256` saves computing it where it is known. Else as `write`."""

    @abstractmethod
    def download(self, key: str, path: Path) -> str:
        """Copy an object into the local file `path` and return the SHA-256 (hex) of the bytes it wrote."""

    @abstractmethod
    def hash(self, key: str) -> str:
        """Read a whole object, keeping nothing, and return the SHA-256 (hex) of its bytes."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with `prefix`, sorted by key; what `check_key` refuses is none of ours."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo | None:
        """Return one object's size and recorded SHA-256, None when there is no such object."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that is not there is no error."""

    @abstractmethod
    def url(self, key: str) -> str:
        """Return ``file:///...`` or ``s3://bucket/prefix/key``; no key gives the address of the store."""

    @abstractmethod
    def leftovers(self, older_than_seconds: float) -> Iterator[ObjectInfo]:
        """Yield what killed transfers left behind; their keys mean something to `delete_leftovers` alone."""

    @abstractmethod
    def delete_leftovers(self, leftovers: Iterable[ObjectInfo]) -> None:
        """Delete what `leftovers` yielded."""

    def remove_abandoned(self) -> None:  # noqa: B027 - most stores have nothing to do
        """Delete what processes of this machine that were killed left of half written objects, as far as it shows."""

    def local_path(self, key: str) -> Path | None:
        """Return the object's own file where the store is a folder, else None."""
        return None

    def exists(self, key: str) -> bool:
        """Say whether there is an object at `key`."""
        return self.stat(key) is not None


def is_key(key: str) -> bool:
    """Say whether an object of ours can have this key; what others put into a bucket is called as they like."""
    try:
        check_key(key)
    except StoreError:
        return False
    return True


def check_key(key: str) -> str:
    """Return `key`: a relative path of printable parts, none of them empty, ``.`` or ``..``, the first not hidden.

    Raises
    ------
    StoreError
        The key could leave the store, hide in it, or not be spelled as a file name.
    """
    parts = key.split("/")
    spelled = key.isprintable() and "\\" not in key and len(key.encode()) <= 900
    if not spelled or key.startswith(".") or any(part in ("", ".", "..") or len(part.encode()) > 250 for part in parts):
        raise StoreError(
            f"{key!r} cannot be a key of the store: expected a relative path such as 'fused/0a1b/shard-00000.parquet', "
            "without '..', backslashes, or '.' or '/' in front."
        )
    return key
