"""The object store in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fusion_core.errors import StoreError
from tasks.store.interface import MissingObjectError, ObjectInfo, Store, check_key, is_key
from tasks.store.local_files import copy_and_hash, disk_errors, hash_file
from tasks.store.owners import is_abandoned, temporary_name


class FolderStore(Store):
    """A store in a folder of a file system that has hard links.

    A file is written under ``.partial/``, by a name that tells its maker, and then linked to its key, so it appears
    whole. Its SHA-256 is written under ``.sha256/`` after it. Nothing is flushed to the disk object by object: what a
    power failure tears is found by checksum and computed again.

    Parameters
    ----------
    root : Path
        Created when it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._partial = self.root / ".partial"
        self._checksums = self.root / ".sha256"
        with disk_errors(f"Creating the store's folder {self.root}"):
            self._partial.mkdir(parents=True, exist_ok=True)
            self._checksums.mkdir(exist_ok=True)

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def read(self, key: str) -> bytes:
        with self._opened(key) as file:
            return file.read()

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        with self._new_file(key) as partial:
            partial.write_bytes(data)
            return self._place(partial, key, hash_file(partial), if_absent)

    def upload(self, key: str, path: Path, *, if_absent: bool = False, sha256: str | None = None) -> bool:
        with self._new_file(key) as partial:
            with path.open("rb") as source, partial.open("wb") as target:
                copied = copy_and_hash(source, target)
            if sha256 not in (None, copied):
                raise StoreError(f"The file {path} changed while it was published to {self.url(key)}; leave it alone.")
            return self._place(partial, key, copied, if_absent)

    def download(self, key: str, path: Path) -> str:
        with self._opened(key) as source:
            try:
                with disk_errors(f"Writing {path}"), path.open("wb") as target:
                    return copy_and_hash(source, target)
            except StoreError:
                path.unlink(missing_ok=True)
                raise

    def hash(self, key: str) -> str:
        with self._opened(key) as file:
            return copy_and_hash(file)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix:
            check_key(prefix.rstrip("/"))
        top = self.root / prefix.rpartition("/")[0]
        found = []
        with disk_errors(f"Listing {top}"):
            for folder, folders, names in os.walk(top):
                if Path(folder) == self.root:
                    folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix) and is_key(key):
                        with suppress(FileNotFoundError):  # deleted meanwhile
                            status = path.stat()
                            found.append(ObjectInfo(key, status.st_size, status.st_mtime))
        yield from sorted(found, key=lambda info: info.key)

    def stat(self, key: str) -> ObjectInfo | None:
        path = self.root / check_key(key)
        with disk_errors(f"Reading {path}"):
            if not path.is_file():
                return None
            status = path.stat()
            checksum = self._checksums / key
            recorded = checksum.read_text(errors="replace") if checksum.is_file() else None
        return ObjectInfo(key, status.st_size, status.st_mtime, recorded)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            check_key(key)
            for root in (self._checksums, self.root):
                with disk_errors(f"Deleting {self.url(key)}"):
                    (root / key).unlink(missing_ok=True)
                for parent in Path(key).parents[:-1]:
                    with suppress(OSError):  # not empty, or gone
                        (root / parent).rmdir()

    def url(self, key: str) -> str:
        return (self.root / check_key(key) if key else self.root).as_uri()

    def local_path(self, key: str) -> Path | None:
        return self.root / check_key(key)

    def leftovers(self, older_than_seconds: float) -> Iterator[ObjectInfo]:
        with disk_errors(f"Listing {self._partial}"):
            for path in sorted(self._partial.iterdir()):
                try:
                    status = path.stat()
                except FileNotFoundError:  # in its place by now
                    continue
                if time.time() - status.st_mtime >= older_than_seconds:
                    yield ObjectInfo(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)

    def delete_leftovers(self, leftovers: Iterable[ObjectInfo]) -> None:
        for info in leftovers:
            with disk_errors(f"Deleting {info.key} in {self.root}"):
                (self._partial / Path(info.key).name).unlink(missing_ok=True)

    def remove_abandoned(self) -> None:
        with disk_errors(f"Clearing {self._partial}"):
            for path in self._partial.iterdir():
                if is_abandoned(path.name):
                    path.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        path = self.root / check_key(key)
        with disk_errors(f"Reading {path}"):
            try:
                file = path.open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise MissingObjectError(f"There is no object at {path}.") from None
            with file:
                yield file

    @contextmanager
    def _new_file(self, key: str) -> Iterator[Path]:
        check_key(key)
        partial = self._partial / temporary_name()
        try:
            with disk_errors(f"Writing {self.url(key)}"):
                yield partial
        finally:
            partial.unlink(missing_ok=True)

    def _place(self, partial: Path, key: str, sha256: str, if_absent: bool) -> bool:
        target = self.root / key
        place: Callable[[Path, Path], None] = os.link if if_absent else os.replace
        try:
            _with_parents(place, partial, target)
        except FileExistsError:
            return False
        checksum = self._partial / temporary_name()
        try:
            checksum.write_text(sha256)
            _with_parents(os.replace, checksum, self._checksums / key)
        finally:
            checksum.unlink(missing_ok=True)
        return True


def _with_parents(place: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Link or move a file; its parents are made again when a concurrent `delete` has pruned them."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            return place(source, target)
        except FileNotFoundError:
            if not source.exists():
                raise
