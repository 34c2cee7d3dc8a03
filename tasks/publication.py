"""Publishing a stage's result whole or not at all: objects first, the manifest last.

A manifest lists every object with size and SHA-256. It is written last with a conditional put, so what has a manifest
is whole, and what has none is resumed object by object. Objects are never overwritten: of two workers that race for one
address each keeps its own bytes, and the one whose manifest comes second adopts the first one's result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fusion_core.errors import StoreError
from tasks.local_cache import LocalCache, is_verified
from tasks.local_files import disk_errors, hash_file
from tasks.store import BrokenObjectError, MissingObjectError, ObjectInfo, Store, check_key

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1

logger = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestEntry(_Record):
    """One object of a publication."""

    name: str = Field(description="Relative path inside the publication.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the bytes, hexadecimal.")
    stored_as: str = Field(description="Name inside the address; differs when another worker's bytes had the name.")


class Manifest(_Record):
    """What a publication consists of; equal inputs give equal bytes, so there is no time in it."""

    schema_version: int = SCHEMA_VERSION
    stage: str = Field(description="Which stage published it, such as 'distributions'.")
    address: str
    entries: tuple[ManifestEntry, ...]
    created_by: str = Field(description="Package and version that wrote it.")
    metadata: dict[str, JsonValue] = Field(description="What the stage says; 'inputs' lists the addresses it read.")

    def entry(self, name: str) -> ManifestEntry:
        """Return the entry called `name`; `StoreError` when there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise StoreError(f"The publication {self.address} has no object {name!r}.")


class Artifact(_Record):
    """A whole publication: what tasks hand to each other."""

    address: str
    digest: str = Field(description="SHA-256 of the manifest's bytes.")
    bytes: int
    objects: int
    metadata: dict[str, JsonValue]
    reused: bool = Field(description="Found whole, or another worker's, instead of published by this one.")
    seconds: float = Field(description="From opening the publication to its manifest; 0 when it was found.")


class Publication:
    """One address being filled.

    Parameters
    ----------
    store : Store
    address : str
        Where the result belongs, a digest of everything that decides its bytes.
    scratch : Path
        Local folder for files that are still being written; created.

    Raises
    ------
    StoreError
        The address is not a relative path without ``..``.
    """

    def __init__(self, store: Store, address: str, scratch: Path) -> None:
        self.store = store
        self.address = check_key(address)
        self.scratch = scratch
        self._entries: dict[str, ManifestEntry] = {}
        self._started = time.monotonic()
        with disk_errors(f"Creating the scratch folder {scratch}"):
            scratch.mkdir(parents=True, exist_ok=True)

    def manifest(self) -> Manifest | None:
        """Return the manifest when the publication is whole already, else None; `BrokenObjectError` when torn."""
        return read_manifest(self.store, self.address)

    def scratch_path(self, name: str) -> Path:
        """Return a local path to write the object `name` to before `add`; its folder exists."""
        path = self.scratch / check_key(name)
        with disk_errors(f"Creating {path.parent}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finished(self, name: str) -> ManifestEntry | None:
        """Return an object's entry when an earlier attempt left it whole in the store, else None.

        It is whole when its bytes (where the store is a folder) or the server's checksum of them (S3) agree with the
        SHA-256 recorded as it was sent. One that disagrees is deleted, and said so in the log.
        """
        key = _key(self.address, name)
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

    def add(self, name: str, path: Path) -> ManifestEntry:
        """Upload a local file as the object `name`, checksum and all, and return its entry.

        Raises
        ------
        StoreError
            The file cannot be read, the store refuses it, or the name is not a plain relative path.
        """
        sha256, size = hash_file(path), path.stat().st_size
        stored_as = name
        key = _key(self.address, name)
        if not self.store.upload(key, path, if_absent=True, sha256=sha256):
            there = self.store.stat(key)
            trusted = self._trusted_sha256(there) if there else None
            if trusted not in (None, sha256):
                # Another worker's bytes have the name. Its manifest may list them already, so they stay.
                pure = PurePosixPath(name)
                stored_as = str(pure.with_name(f"{pure.stem}.{sha256[:16]}{pure.suffix}"))
            if there is None or not trusted == there.sha256 == sha256:
                self.store.upload(_key(self.address, stored_as), path, sha256=sha256)
        entry = ManifestEntry(name=name, size=size, sha256=sha256, stored_as=stored_as)
        self._entries[name] = entry
        return entry

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
            found = sizes.get(_key(self.address, entry.stored_as))
            if found != entry.size:
                state = "is gone" if found is None else f"has {found} bytes instead of {entry.size}"
                raise BrokenObjectError(self.address, entry.name, f"it {state} before the manifest was written")
        manifest = Manifest(
            stage=stage,
            address=self.address,
            entries=tuple(self._entries[name] for name in sorted(self._entries)),
            created_by=f"fuseline {_package_version()}",
            metadata=dict(metadata),
        )
        reused = not self.store.write(_key(self.address, MANIFEST, own=True), encode_manifest(manifest), if_absent=True)
        if reused:
            manifest = self._adopt(manifest)
        return _artifact(manifest, reused=reused, seconds=time.monotonic() - self._started)

    def _trusted_sha256(self, info: ObjectInfo) -> str | None:
        """Return the SHA-256 of the bytes at a key, None where they are not what somebody published.

        On S3 bytes and record arrive together, so what has no record is not ours. In a folder the record follows the
        bytes, and the bytes can be read.
        """
        path = self.store.local_path(info.key)
        if path is None:
            return info.sha256
        actual = hash_file(path)
        return actual if info.sha256 in (None, actual) else None

    def _adopt(self, mine: Manifest) -> Manifest:
        manifest = read_manifest(self.store, self.address)
        if manifest is None:
            raise StoreError(
                f"The manifest of {self.address} was deleted while it was being published; run again, alone."
            )
        listed = {entry.stored_as for entry in manifest.entries}
        unlisted = [entry.stored_as for entry in mine.entries if entry.stored_as not in listed]
        self.store.delete(_key(self.address, name) for name in unlisted)
        return manifest


def read_manifest(store: Store, address: str) -> Manifest | None:
    """Return the manifest at an address, None when there is none.

    Raises
    ------
    BrokenObjectError
        It is torn, altered, or belongs to another address.
    StoreError
        Another version of the schema wrote it.
    """
    try:
        data = store.read(_key(address, MANIFEST, own=True))
    except MissingObjectError:
        return None
    return decode_manifest(data, address)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest's bytes: JSON with sorted keys and a checksum of the rest, equal for equal manifests."""
    try:
        content = _canonical(manifest.model_dump(mode="json"))
    except ValueError:
        raise StoreError(
            f"The metadata of {manifest.address} hold a number that JSON has not (NaN or infinity)."
        ) from None
    fields = json.loads(content)
    fields["content_sha256"] = hashlib.sha256(content.encode()).hexdigest()
    return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def decode_manifest(data: bytes, address: str) -> Manifest:
    """Return the manifest in `data`; `BrokenObjectError` when it is torn, altered or of another address."""
    try:
        fields = json.loads(data)
        found = fields.pop("content_sha256")
        schema = fields["schema_version"]
        content = _canonical(fields)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BrokenObjectError(address, MANIFEST, f"its {len(data)} bytes are no manifest") from None
    if found != hashlib.sha256(content.encode()).hexdigest():
        raise BrokenObjectError(address, MANIFEST, "its checksum does not match its content")
    if schema != SCHEMA_VERSION:
        raise StoreError(
            f"The manifest of {address} has schema version {schema}, this Fuseline reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or another store."
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        raise BrokenObjectError(address, MANIFEST, f"its fields are not a manifest's ({error.error_count()})") from None
    if manifest.address != address:
        raise BrokenObjectError(address, MANIFEST, f"it belongs to {manifest.address}")
    return manifest


def find_artifact(store: Store, address: str) -> Artifact | None:
    """Return the whole publication at an address, None when there is none; errors as `read_manifest`."""
    manifest = read_manifest(store, address)
    return None if manifest is None else _artifact(manifest, reused=True, seconds=0.0)


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
    key = _key(address, entry.stored_as)
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
    manifest = read_manifest(store, address)
    if manifest is None:
        raise MissingObjectError(f"Nothing whole is published at {store.url(address)}; run the stage that makes it.")
    folder = store.local_path(address)
    if folder is not None and all(entry.stored_as == entry.name for entry in manifest.entries):
        for entry in manifest.entries:
            fetch_file(store, cache, address, entry)
        return folder
    for entry in manifest.entries:
        cache.fetch(address, entry.name, entry.sha256, entry.size, _downloader(store, address, entry))
    return cache.address_folder(address)


def discard(store: Store, address: str, name: str | None = None) -> None:
    """Make an address unfinished again: delete its manifest, then the object `name`, or all objects without a name.

    What remains is found by `Publication.finished`, so a rerun computes only what was deleted.
    """
    manifest_key = _key(address, MANIFEST, own=True)
    stored_as = name
    try:
        manifest = read_manifest(store, address)
    except BrokenObjectError:
        manifest = None
    if manifest is not None and name not in (None, MANIFEST):
        stored_as = manifest.entry(name).stored_as
    # The manifest goes first: at no moment may one list what is gone.
    store.delete([manifest_key])
    if stored_as is None:
        store.delete([info.key for info in store.list(address + "/")])
    elif stored_as != MANIFEST:
        store.delete([_key(address, stored_as)])


def _downloader(store: Store, address: str, entry: ManifestEntry) -> Callable[[Path], None]:
    def download(path: Path) -> None:
        key = _key(address, entry.stored_as)
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


def _artifact(manifest: Manifest, *, reused: bool, seconds: float) -> Artifact:
    return Artifact(
        address=manifest.address,
        digest=hashlib.sha256(encode_manifest(manifest)).hexdigest(),
        bytes=sum(entry.size for entry in manifest.entries),
        objects=len(manifest.entries),
        metadata=manifest.metadata,
        reused=reused,
        seconds=seconds,
    )


def _key(address: str, name: str, *, own: bool = False) -> str:
    if name == MANIFEST and not own:
        raise StoreError(f"An object of {address} cannot be called {MANIFEST}; rename the file.")
    return check_key(f"{check_key(address)}/{check_key(name)}")


def _canonical(fields: dict[str, JsonValue]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _package_version() -> str:
    try:
        return version("fuseline")
    except PackageNotFoundError:
        return "from a checkout"
