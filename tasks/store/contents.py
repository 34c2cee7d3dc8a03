"""What the object store holds: whole publications, unfinished ones, and what belongs to neither."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fusion_core.errors import StoreError
from tasks.store.interface import BrokenObjectError, ObjectInfo, Store
from tasks.store.manifest import MANIFEST, Artifact, artifact_of, is_beside_manifest, read_manifest

# Locks, what re-fusion remembers, and sources that others have put there: no publications, and nobody's garbage.
NO_PUBLICATIONS = ("locks/", "refusion/", "sources/")


@dataclass(frozen=True)
class StoredArtifact:
    """A whole publication as the store lists it.

    Attributes
    ----------
    stage : str
    published : float
        When its manifest was written, seconds since the epoch.
    artifact : Artifact
        Address, bytes, number of objects, and the stage's metadata.
    """

    stage: str
    published: float
    artifact: Artifact

    @property
    def address(self) -> str:
        """Where it is."""
        return self.artifact.address

    @property
    def inputs(self) -> tuple[str, ...]:
        """Addresses that the stage read.

        Raises
        ------
        StoreError
            The manifest's inputs are no list of addresses.
        """
        inputs = self.artifact.metadata.get("inputs", [])
        if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
            raise StoreError(f"The manifest of {self.address} has inputs that are no list of addresses; discard it.")
        return tuple(str(item) for item in inputs)


@dataclass(frozen=True)
class UnfinishedPublication:
    """A folder of objects without a manifest: being filled, or left by a run that was killed.

    Attributes
    ----------
    address : str
    bytes : int
    keys : tuple of str
    last_written : float
        Seconds since the epoch.
    """

    address: str
    bytes: int
    keys: tuple[str, ...]
    last_written: float


@dataclass(frozen=True)
class BrokenObject:
    """An object that is not what its manifest says: publication, name in it, and what is wrong."""

    address: str
    name: str
    found: str


@dataclass(frozen=True)
class Contents:
    """Everything in a store.

    Attributes
    ----------
    artifacts : tuple of StoredArtifact
    broken_manifests : tuple of BrokenObject
    unfinished : tuple of UnfinishedPublication
    strays : tuple of ObjectInfo
        Objects inside a whole publication that its manifest does not list.
    """

    artifacts: tuple[StoredArtifact, ...]
    broken_manifests: tuple[BrokenObject, ...]
    unfinished: tuple[UnfinishedPublication, ...]
    strays: tuple[ObjectInfo, ...]


@dataclass(frozen=True)
class Usage:
    """Bytes and objects of a store, all of it and by stage; 'unfinished' and 'stray' count as stages."""

    bytes: int
    objects: int
    by_stage: dict[str, tuple[int, int]]


def list_artifacts(store: Store) -> list[StoredArtifact]:
    """Return every whole publication, sorted by address; broken manifests are left to `verify`."""
    return list(read_contents(store).artifacts)


def read_contents(store: Store) -> Contents:
    """List the store once and sort its objects into publications.

    Raises
    ------
    StoreError
        The store cannot be read, or another version of Fuseline wrote to it.
    """
    infos = [info for info in store.list() if not info.key.startswith(NO_PUBLICATIONS)]
    manifests = {info.key.removesuffix(f"/{MANIFEST}"): info for info in infos if info.key.endswith(f"/{MANIFEST}")}
    beside: dict[str, list[ObjectInfo]] = defaultdict(list)
    alone: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in infos:
        owner = next((parent for parent in folders_above(info.key) if parent in manifests), None)
        if owner is None:
            alone[info.key.rpartition("/")[0]].append(info)
        else:
            beside[owner].append(info)
    artifacts: list[StoredArtifact] = []
    broken: list[BrokenObject] = []
    strays: list[ObjectInfo] = []
    for address, info in sorted(manifests.items()):
        try:
            manifest = read_manifest(store, address)
        except BrokenObjectError as error:
            broken.append(BrokenObject(address, MANIFEST, error.found))
            continue
        if manifest is None:  # deleted since it was listed
            continue
        artifacts.append(StoredArtifact(manifest.stage, info.modified, artifact_of(manifest, reused=True, seconds=0.0)))
        listed = {f"{address}/{entry.stored_as}" for entry in manifest.entries}
        listed.add(info.key)
        strays.extend(
            item
            for item in beside[address]
            if item.key not in listed and not is_beside_manifest(item.key.removeprefix(f"{address}/"))
        )
    unfinished = tuple(_unfinished(address, objects) for address, objects in sorted(alone.items()))
    return Contents(tuple(artifacts), tuple(broken), unfinished, tuple(strays))


def disk_usage(store: Store) -> Usage:
    """Count bytes and objects; manifests themselves are not counted."""
    contents = read_contents(store)
    stages: dict[str, tuple[int, int]] = {}

    def add(stage: str, size: int, objects: int) -> None:
        have = stages.get(stage, (0, 0))
        stages[stage] = (have[0] + size, have[1] + objects)

    for stored in contents.artifacts:
        add(stored.stage, stored.artifact.bytes, stored.artifact.objects)
    for publication in contents.unfinished:
        add("unfinished", publication.bytes, len(publication.keys))
    for info in contents.strays:
        add("stray", info.size, 1)
    return Usage(sum(size for size, _ in stages.values()), sum(count for _, count in stages.values()), stages)


def folders_above(key: str) -> list[str]:
    """Return the folders above a key, the nearest first."""
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _unfinished(address: str, objects: list[ObjectInfo]) -> UnfinishedPublication:
    return UnfinishedPublication(
        address=address,
        bytes=sum(info.size for info in objects),
        keys=tuple(info.key for info in objects),
        last_written=max(info.modified for info in objects),
    )
