"""The object store looked at as a whole: what is there, whether it is whole, and what of it nobody needs any more."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fusion_core.errors import StoreError
from fusion_core.progress import Advance, ignore_progress
from tasks.store.contents import (
    BrokenObject,
    Contents,
    StoredArtifact,
    UnfinishedPublication,
    Usage,
    disk_usage,
    folders_above,
    list_artifacts,
    read_contents,
)
from tasks.store.interface import BrokenObjectError, MissingObjectError, ObjectInfo, Store
from tasks.store.manifest import MANIFEST, Manifest, is_beside_manifest, manifest_key, read_manifest
from tasks.store.publication import object_key

__all__ = [
    "BrokenObject",
    "Contents",
    "Garbage",
    "StoredArtifact",
    "UnfinishedPublication",
    "Usage",
    "collect_garbage",
    "disk_usage",
    "list_artifacts",
    "read_contents",
    "verify",
]

DAY_SECONDS = 86_400.0
READERS = 4  # objects read at once when a store is verified


@dataclass(frozen=True)
class Garbage:
    """What nobody needs.

    Attributes
    ----------
    unneeded : tuple of StoredArtifact
        Whole, but no root needs them.
    unfinished : tuple of UnfinishedPublication
        Not written to for `older_than_seconds`, and no root's own address.
    strays, leftovers : tuple of ObjectInfo
        As old: objects beside a manifest that does not list them; what killed transfers left.
    kept : tuple of str
        Addresses that stay, roots and what they were made from.
    bytes : int
        What deleting all of it frees.
    deleted : bool
    """

    unneeded: tuple[StoredArtifact, ...]
    unfinished: tuple[UnfinishedPublication, ...]
    strays: tuple[ObjectInfo, ...]
    leftovers: tuple[ObjectInfo, ...]
    kept: tuple[str, ...]
    bytes: int
    deleted: bool


def verify(
    store: Store,
    addresses: Collection[str] | None = None,
    *,
    read: bool = True,
    progress: Advance = ignore_progress,
) -> list[BrokenObject]:
    """Compare objects with their manifests and return those that differ.

    Parameters
    ----------
    store : Store
    addresses : collection of str, optional
        Only these publications; default: all.
    read : bool
        Read every object and compare its SHA-256; otherwise only presence and size are compared.
    progress : callable
        Called with bytes done and bytes in all.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    broken: list[BrokenObject] = []
    manifests: list[Manifest] = []
    if addresses is None:
        contents = read_contents(store)
        broken.extend(contents.broken_manifests)
        addresses = [stored.address for stored in contents.artifacts]
    for address in sorted(addresses):
        try:
            manifest = read_manifest(store, address)
        except BrokenObjectError as error:
            broken.append(BrokenObject(address, MANIFEST, error.found))
            continue
        if manifest is None:
            broken.append(BrokenObject(address, MANIFEST, "it is missing from the store"))
        else:
            manifests.append(manifest)
    total = sum(entry.size for manifest in manifests for entry in manifest.entries)
    done = 0
    with ThreadPoolExecutor(READERS) as pool:
        for manifest in manifests:
            sizes = {info.key: info.size for info in store.list(manifest.address + "/")}
            keys = [f"{manifest.address}/{entry.stored_as}" for entry in manifest.entries]
            hashes = [pool.submit(_hash_if_there, store, key) if read and key in sizes else None for key in keys]
            for entry, key, hashed in zip(manifest.entries, keys, hashes, strict=True):
                found = sizes.get(key)
                if found is None or (hashed is not None and hashed.result() is None):
                    broken.append(BrokenObject(manifest.address, entry.name, "it is missing from the store"))
                elif found != entry.size:
                    difference = f"it has {found:,} bytes instead of {entry.size:,}"
                    broken.append(BrokenObject(manifest.address, entry.name, difference))
                elif hashed is not None and hashed.result() != entry.sha256:
                    difference = "its bytes do not have the SHA-256 of the manifest"
                    broken.append(BrokenObject(manifest.address, entry.name, difference))
                done += entry.size
                progress(done, total)
    return broken


def collect_garbage(
    store: Store, roots: Collection[str], *, delete: bool, older_than_seconds: float = DAY_SECONDS
) -> Garbage:
    """Find what no root needs, following the inputs in the manifests, and delete it when told to.

    Parameters
    ----------
    store : Store
    roots : collection of str
        What registered models were published as, and every address of the recipes in use: inputs are followed from
        manifests, so what is not published yet leads nowhere.
    delete : bool
        Delete what was found; otherwise nothing is touched.
    older_than_seconds : float
        Publications with all they were made from, unfinished ones, strays and leftovers younger than this may belong
        to a run under way and are no garbage.

    Raises
    ------
    StoreError
        A needed manifest is broken, so that what it was made from is not known, or there are no roots, so that
        everything would go; nothing is deleted.
    """
    contents = read_contents(store)
    artifacts = {stored.address: stored for stored in contents.artifacts}
    needed = _needed(roots, artifacts, {broken.address for broken in contents.broken_manifests})
    oldest = time.time() - older_than_seconds
    young = [stored.address for stored in contents.artifacts if stored.published > oldest]
    needed |= _needed(young, artifacts, set())
    unneeded = tuple(stored for stored in contents.artifacts if stored.address not in needed)
    if delete and unneeded and not roots:
        raise StoreError(
            f"No model is registered and no recipe is named, so {len(unneeded)} publications of {store.url('')} "
            "would be deleted; name the recipes in use with --recipe, or set MLFLOW_TRACKING_URI to the registry that "
            "belongs to this store."
        )
    unfinished = tuple(
        publication
        for publication in contents.unfinished
        if publication.last_written <= oldest and not _belongs(publication.address, needed)
    )
    strays = tuple(info for info in contents.strays if info.modified <= oldest)
    leftovers = tuple(store.leftovers(older_than_seconds))
    size = sum(stored.artifact.bytes for stored in unneeded) + sum(publication.bytes for publication in unfinished)
    size += sum(info.size for info in (*strays, *leftovers))
    if delete:
        for stored in unneeded:
            _delete(store, stored.address)
        store.delete([key for publication in unfinished for key in publication.keys])
        store.delete([info.key for info in strays])
        store.delete_leftovers(leftovers)
    kept = tuple(sorted(needed & artifacts.keys()))
    return Garbage(unneeded, unfinished, strays, leftovers, kept, size, delete)


def _needed(roots: Iterable[str], artifacts: dict[str, StoredArtifact], broken: set[str]) -> set[str]:
    needed: set[str] = set()
    waiting = list(roots)
    while waiting:
        address = waiting.pop()
        if address in needed:
            continue
        needed.add(address)
        if address in broken:
            raise StoreError(
                f"The manifest of {address}, which is needed, is broken, so what it was made from is not known; "
                "run the recipe again, which repairs it, before collecting garbage."
            )
        if address in artifacts:
            waiting.extend(artifacts[address].inputs)
    return needed


def _delete(store: Store, address: str) -> None:
    """Delete a publication and nothing else below its address, the manifest first."""
    manifest = read_manifest(store, address)
    if manifest is not None:
        store.delete([manifest_key(address)])
        names = [info.key.removeprefix(f"{address}/") for info in store.list(f"{address}/")]
        listed = {entry.stored_as for entry in manifest.entries}
        store.delete([object_key(address, name) for name in names if name in listed or is_beside_manifest(name)])


def _belongs(address: str, needed: set[str]) -> bool:
    return address in needed or any(parent in needed for parent in folders_above(address))


def _hash_if_there(store: Store, key: str) -> str | None:
    try:
        return store.hash(key)
    except MissingObjectError:
        return None
