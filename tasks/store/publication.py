"""Publishing a stage's result whole or not at all: objects first, the manifest last.

A manifest lists every object with size and SHA-256. It is written last with a conditional put, so what has a manifest
is whole, and what has none is resumed object by object. Objects are never overwritten: of two workers that race for one
address each keeps its own bytes, and the one whose manifest comes second adopts the first one's result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

from fusion_core.errors import StoreError
from tasks.store.interface import BrokenObjectError, MissingObjectError, ObjectInfo, Store, check_key
from tasks.store.local_cache import LocalCache, is_verified
from tasks.store.local_files import hash_file
from tasks.store.manifest import (
    MANIFEST,
    Artifact,
    Manifest,
    ManifestEntry,
    artifact_of,
    encode_manifest,
    manifest_key,
    package_version,
    read_manifest,
)

logger = logging.getLogger(__name__)

# A look at an object is a request to S3, or the reading of a file.
LOOKS_AT_ONCE = 16


class Publication:
    """One address being filled.

    Parameters
    ----------
    store : Store
    address : str
        Where the result belongs, a digest of everything that decides its bytes.

    Raises
    ------
    StoreError
        The address is not a relative path without ``..``.
    """

    def __init__(self, store: Store, address: str) -> None:
        self.store = store
        self.address = check_key(address)
        self._entries: dict[str, ManifestEntry] = {}
        self._started = time.monotonic()

    def manifest(self) -> Manifest | None:
        """Return the manifest when the publication is whole already, else None; `BrokenObjectError` when torn."""
        return read_manifest(self.store, self.address)

    def finished(self, name: str) -> ManifestEntry | None:
        """Return an object's entry when an earlier attempt left it whole in the store, else None.

        It is whole when its bytes (where the store is a folder) or the server's checksum of them (S3) agree with the
        SHA-256 recorded as it was sent. One that disagrees is deleted, and said so in the log.
        """
        key = object_key(self.address, name)
        info = self.store.stat(key)
        if info is None or info.sha256 is None:
            return None
        if self._trusted_sha256(info) is None:
            logger.warning("%s is not what was sent there; it is deleted and made anew.", self.store.url(key))
            self.store.delete([key])
            return None
        entry = ManifestEntry(name=name, size=info.size, sha256=info.sha256, stored_as=name)
        self._entries[name] = entry
        return entry

    def finished_among(self, names: Sequence[str]) -> dict[str, ManifestEntry]:
        """Return the entries of those of some objects that `finished` finds, looking at several at once."""
        there = {info.key for info in self.store.list(f"{self.address}/")}
        candidates = [name for name in names if object_key(self.address, name) in there]

        def look(some: Sequence[str]) -> list[ManifestEntry]:
            return [entry for name in some if (entry := self.finished(name)) is not None]

        # A share for each thread: handing over ten thousand small objects one by one costs more than looking at them.
        shares = [candidates[start::LOOKS_AT_ONCE] for start in range(LOOKS_AT_ONCE)]
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            return {entry.name: entry for entries in pool.map(look, shares) for entry in entries}

    def add(self, name: str, path: Path) -> ManifestEntry:
        """Upload a local file as the object `name`, checksum and all, and return its entry.

        Raises
        ------
        StoreError
            The file cannot be read, the store refuses it, or the name is not a plain relative path.
        """
        sha256, size = hash_file(path), path.stat().st_size
        stored_as = name
        key = object_key(self.address, name)
        if not self.store.upload(key, path, if_absent=True, sha256=sha256):
            there = self.store.stat(key)
            trusted = self._trusted_sha256(there) if there else None
            if trusted not in (None, sha256):
                # Another worker's bytes have the name. Its manifest may list them already, so they stay.
                pure = PurePosixPath(name)
                stored_as = str(pure.with_name(f"{pure.stem}.{sha256[:16]}{pure.suffix}"))
            if there is None or not trusted == there.sha256 == sha256:
                self.store.upload(object_key(self.address, stored_as), path, sha256=sha256)
        entry = ManifestEntry(name=name, size=size, sha256=sha256, stored_as=stored_as)
        self._entries[name] = entry
        return entry

    def add_folder(self, folder: Path) -> None:
        """Upload every file of a folder, those in its subfolders too, under its path in the folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.add(path.relative_to(folder).as_posix(), path)

    def finish(self, *, stage: str, metadata: Mapping[str, JsonValue]) -> Artifact:
        """Write the manifest over everything added or found finished, and return the artifact.

        When another worker's manifest is there first, its result is adopted and what only this one added is deleted.

        Raises
        ------
        StoreError
            An object has vanished from the store meanwhile, or the metadata are not JSON.
        """
        sizes = {info.key: info.size for info in self.store.list(self.address + "/")}
        for entry in self._entries.values():
            found = sizes.get(object_key(self.address, entry.stored_as))
            if found != entry.size:
                state = "is gone" if found is None else f"has {found} bytes instead of {entry.size}"
                raise BrokenObjectError(self.address, entry.name, f"it {state} before the manifest was written")
        manifest = Manifest(
            stage=stage,
            address=self.address,
            entries=tuple(self._entries[name] for name in sorted(self._entries)),
            created_by=f"fuseline {package_version()}",
            metadata=dict(metadata),
        )
        adopted = manifest
        if not self.store.write(manifest_key(self.address), encode_manifest(manifest), if_absent=True):
            adopted = self._adopt(manifest)
        # Equal manifests are one's own, even where the store's answer to it was lost and the repetition came second.
        return artifact_of(adopted, reused=adopted != manifest, seconds=time.monotonic() - self._started)

    def _trusted_sha256(self, info: ObjectInfo) -> str | None:
        """Return the SHA-256 of the bytes at a key, None where they are not what somebody published.

        On S3 bytes and record arrive together, so what has no record is not ours. In a folder the record follows the
        bytes, and the bytes can be read.
        """
        path = self.store.local_path(info.key)
        if path is None:
            return info.sha256
        if info.sha256 is None:
            return hash_file(path)
        return info.sha256 if is_verified(path, info.sha256) else None

    def _adopt(self, mine: Manifest) -> Manifest:
        manifest = read_manifest(self.store, self.address)
        if manifest is None:
            raise StoreError(
                f"The manifest of {self.address} was deleted while it was being published; run again, alone."
            )
        listed = {entry.stored_as for entry in manifest.entries}
        unlisted = [entry.stored_as for entry in mine.entries if entry.stored_as not in listed]
        self.store.delete(object_key(self.address, name) for name in unlisted)
        return manifest


def find_artifact(store: Store, address: str) -> Artifact | None:
    """Return the whole publication at an address, None when there is none; errors as `read_manifest`."""
    manifest = read_manifest(store, address)
    return None if manifest is None else artifact_of(manifest, reused=True, seconds=0.0)


def entries_of(store: Store, address: str) -> tuple[ManifestEntry, ...]:
    """Return the objects of a whole publication.

    Raises
    ------
    MissingObjectError
        Nothing whole is published at the address.
    BrokenObjectError
        Its manifest is torn or altered.
    """
    manifest = read_manifest(store, address)
    if manifest is None:
        raise MissingObjectError(f"Nothing whole is published at {store.url(address)}; run the stage that makes it.")
    return manifest.entries


def fetch_file(store: Store, cache: LocalCache, address: str, entry: ManifestEntry) -> Path:
    """Return a local file with an object's verified bytes; do not write to it.

    From a folder store it is the object's own file, from S3 a file of the local cache that stays while `cache` lives.

    Raises
    ------
    BrokenObjectError
        The object is missing from the store, truncated, or altered.
    StoreError
        The store cannot be read, or the cache has no room.
    """
    key = object_key(address, entry.stored_as)
    path = store.local_path(key)
    if path is not None:
        if not path.is_file():
            raise BrokenObjectError(address, entry.name, "it is missing from the store")
        if not is_verified(path, entry.sha256):
            raise BrokenObjectError(address, entry.name, _difference(path.stat().st_size, entry))
        return path
    return cache.fetch(address, entry.name, entry.sha256, entry.size, _downloader(store, address, entry))


def fetch_folder(store: Store, cache: LocalCache, address: str) -> Path:
    """Return a local folder with every object of a publication under its name, such as a checkpoint folder.

    Raises
    ------
    MissingObjectError
        Nothing whole is published at the address.
    BrokenObjectError
        An object, or the manifest, is missing, truncated or altered.
    """
    entries = entries_of(store, address)
    folder = store.local_path(address)
    if folder is not None and all(entry.stored_as == entry.name for entry in entries):
        for entry in entries:
            fetch_file(store, cache, address, entry)
        return folder
    for entry in entries:
        cache.fetch(address, entry.name, entry.sha256, entry.size, _downloader(store, address, entry))
    return cache.address_folder(address)


def discard(store: Store, address: str, name: str | None = None) -> None:
    """Make an address unfinished again: delete its manifest, then the object `name`, or all objects without a name.

    What remains is found by `Publication.finished`, so a rerun computes only what was deleted.
    """
    stored_as = name
    try:
        manifest = read_manifest(store, address)
    except BrokenObjectError:
        manifest = None
    if manifest is not None:
        stored_as = next((entry.stored_as for entry in manifest.entries if entry.name == name), name)
    # The manifest goes first: at no moment may one list what is gone.
    store.delete([manifest_key(address)])
    if stored_as is None:
        store.delete([info.key for info in store.list(address + "/")])
    elif stored_as != MANIFEST:
        store.delete([object_key(address, stored_as)])


def _downloader(store: Store, address: str, entry: ManifestEntry) -> Callable[[Path], None]:
    def download(path: Path) -> None:
        key = object_key(address, entry.stored_as)
        try:
            # Twice, because what went wrong may have gone wrong on the way.
            if any(store.download(key, path) == entry.sha256 for _ in range(2)):
                return
        except MissingObjectError:
            raise BrokenObjectError(address, entry.name, "it is missing from the store") from None
        raise BrokenObjectError(address, entry.name, _difference(path.stat().st_size, entry))

    return download


def _difference(size: int, entry: ManifestEntry) -> str:
    if size != entry.size:
        return f"it has {size:,} bytes instead of {entry.size:,}"
    return f"its {size:,} bytes do not have the SHA-256 {entry.sha256[:16]}... of the manifest"


def object_key(address: str, name: str) -> str:
    """Return the key of an object inside a publication.

    Raises
    ------
    StoreError
        Address or name is not a plain relative path, or the name is the manifest's.
    """
    if name == MANIFEST:
        raise StoreError(f"An object of {address} cannot be called {MANIFEST}; rename the file.")
    return check_key(f"{check_key(address)}/{check_key(name)}")
