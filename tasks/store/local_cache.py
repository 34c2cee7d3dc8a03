"""A local read-through cache of store objects with a size limit, shared by the processes of one machine.

Objects are files named by their SHA-256. A reader gets a hard link of its own (a lease), so eviction never takes a file
from under it: an object with a second link is in use and is not evicted. Leases and half downloads hold a file lock,
which the system drops when their process dies, however it dies; whoever needs room next sweeps them up.

    objects/<sha256>             whole, verified, read-only; access time: last use
    incoming/<sha256>.part       being downloaded
    incoming/<sha256>.lock       locked by its downloader; its content is the room it has taken, in bytes
    leases/<lease>/<address>/... the links of one reader
    leases/<lease>.lock          locked by it while it lives
    lock                         guards every change of what is above
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fusion_core.errors import StoreError
from tasks.settings import Settings
from tasks.store.local_files import disk_errors, hash_file

# Files this process has read through and found right: (device, inode, size, time of change, SHA-256).
_verified: set[tuple[int, int, int, int, str]] = set()


@dataclass(frozen=True)
class CacheUsage:
    """What a cache holds: number of objects, their bytes, the bytes in use by readers, and the limit in bytes."""

    objects: int
    bytes: int
    bytes_in_use: int
    limit_bytes: int


class LocalCache:
    """One reader of the cache in `folder`; the paths it hands out stay while it lives and is not closed.

    Use it as a context manager, or let it go out of scope when its paths are no longer needed.

    Parameters
    ----------
    folder : Path
        Created with the first object; its file system needs hard links.
    limit_bytes : int
        Most bytes of objects, whole and incoming.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._lease: Path | None = None
        self._release: weakref.finalize | None = None

    def __enter__(self) -> LocalCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back every path handed out; the cache can be used again afterwards."""
        if self._release is not None:
            self._release()
        self._lease = self._release = None

    def fetch(self, address: str, name: str, sha256: str, size: int, download: Callable[[Path], None]) -> Path:
        """Return a read-only local file with the bytes of one object, downloading it if the cache has it not.

        Parameters
        ----------
        address, name : str
            Where the object belongs; files of one address share a folder, in which each has its name.
        sha256 : str
            Hexadecimal; a cached file that does not have it is dropped and downloaded again.
        size : int
            Bytes.
        download : callable
            Writes the object to the path it is given, verified, or raises.

        Raises
        ------
        StoreError
            The disk is full, or the limit leaves no room beside what readers are using.
        """
        target = self.address_folder(address) / name
        with disk_errors(f"Using the local cache {self.folder}"):
            if not self._linked(sha256, target):
                with self._locked_object(sha256):
                    if not self._linked(sha256, target):
                        self._download(sha256, size, download)
                        if not self._linked(sha256, target):
                            raise StoreError(
                                f"The local cache {self.folder} lost {name} of {address}; is it on a disk?"
                            )
        return target

    def address_folder(self, address: str) -> Path:
        """Return the folder in which this reader's files of an address appear."""
        if self._lease is None:
            with disk_errors(f"Creating the local cache {self.folder}"):
                self._open_lease()
        assert self._lease is not None
        return self._lease / hashlib.sha256(address.encode()).hexdigest()[:32]

    def usage(self) -> CacheUsage:
        """Count what the cache holds."""
        if not self.folder.is_dir():
            return CacheUsage(0, 0, 0, self.limit_bytes)
        with disk_errors(f"Reading the local cache {self.folder}"), self._lock():
            status = [entry.stat() for entry in _entries(self.folder / "objects")]
        return CacheUsage(
            objects=len(status),
            bytes=sum(file.st_size for file in status),
            bytes_in_use=sum(file.st_size for file in status if file.st_nlink > 1),
            limit_bytes=self.limit_bytes,
        )

    def _open_lease(self) -> None:
        for part in ("objects", "incoming", "leases"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        lease = self.folder / "leases" / uuid.uuid4().hex
        with self._lock():
            file = lease.with_suffix(".lock").open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)
            lease.mkdir()
        self._lease = lease
        self._release = weakref.finalize(self, _end_lease, lease, file, os.getpid())

    def _linked(self, sha256: str, target: Path) -> bool:
        """Link a cached object to `target` and verify it; drop it when it is broken."""
        source = self.folder / "objects" / sha256
        with self._lock():
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except FileNotFoundError:
                    return False
            os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        if is_verified(target, sha256):
            return True
        with self._lock():
            target.unlink(missing_ok=True)
            source.unlink(missing_ok=True)
        return False

    def _download(self, sha256: str, size: int, download: Callable[[Path], None]) -> None:
        part = self.folder / "incoming" / f"{sha256}.part"
        with self._lock():
            self._make_room(size)
            part.with_suffix(".lock").write_text(str(size))
        try:
            download(part)
            part.chmod(0o444)
            with self._lock():
                part.rename(self.folder / "objects" / sha256)
                part.with_suffix(".lock").write_text("0")
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Evict least recently used objects until `size` more bytes fit; the lock is held."""
        for lock in (self.folder / "leases").glob("*.lock"):
            _remove_if_abandoned(lock, lock.with_suffix(""))
        for lock in (self.folder / "incoming").glob("*.lock"):
            _remove_if_abandoned(lock, lock.with_suffix(".part"))
        incoming = sum(_reserved(lock) for lock in (self.folder / "incoming").glob("*.lock"))
        objects = sorted(((entry.stat(), entry.path) for entry in _entries(self.folder / "objects")), key=_last_use)
        excess = incoming + sum(status.st_size for status, _ in objects) + size - self.limit_bytes
        for status, path in objects:
            if excess <= 0:
                return
            if status.st_nlink == 1:
                os.unlink(path)
                excess -= status.st_size
        if excess > 0:
            raise StoreError(
                f"The local cache {self.folder} has no room for {size:,} bytes more: its limit is "
                f"{self.limit_bytes:,} bytes, and what it holds is in use; set FUSELINE_CACHE_SIZE to at least "
                f"{self.limit_bytes + excess:,} bytes."
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _locked_object(self, sha256: str) -> Iterator[None]:
        """Let one downloader at a time have an object; the others wait for it."""
        path = self.folder / "incoming" / f"{sha256}.lock"
        while True:
            file = path.open("ab")  # its content is the present holder's
            fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    file.truncate(0)
                    break
            # The downloader before us removed the file that we were waiting for.
            file.close()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()


def open_cache(settings: Settings) -> LocalCache:
    """Open the local cache that the settings name."""
    return LocalCache(settings.cache_folder, settings.cache_size)


def is_verified(path: Path, sha256: str) -> bool:
    """Say whether a file has a SHA-256; a file unchanged since this process last read it through is not read again."""
    status = path.stat()
    seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, sha256)
    if seen not in _verified:
        if hash_file(path) != sha256:
            return False
        _verified.add(seen)
    return True


def _end_lease(lease: Path, file: BinaryIO, owner: int) -> None:
    # A forked child inherits the finalizer but not the right to end its parent's lease.
    if os.getpid() == owner:
        shutil.rmtree(lease, ignore_errors=True)
        lease.with_suffix(".lock").unlink(missing_ok=True)
    file.close()


def _remove_if_abandoned(lock: Path, guarded: Path) -> None:
    """Remove a lock and what it guards when the process that locked it is gone."""
    with suppress(FileNotFoundError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if guarded.is_dir():
            shutil.rmtree(guarded, ignore_errors=True)
        guarded.unlink(missing_ok=True)
        # While it is still locked: whoever waits for it notices that it is gone.
        lock.unlink()


def _reserved(lock: Path) -> int:
    with suppress(FileNotFoundError):  # its downloader has just finished
        return int(lock.read_text() or 0)
    return 0


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.endswith(".lock")]


def _last_use(item: tuple[os.stat_result, str]) -> int:
    return item[0].st_atime_ns
