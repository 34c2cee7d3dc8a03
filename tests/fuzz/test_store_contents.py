"""What lies in an object store: manifests, listings, settings of landed sources, indices of checkpoints, locks."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fusion_core.errors import StoreError
from tasks.landing.files import fetch_source
from tasks.landing.sources import _stored, list_landed
from tasks.stages.training_checkpoints import StoredCheckpoints
from tasks.store.collection import collect_garbage, read_contents, verify
from tasks.store.folder import FolderStore
from tasks.store.interface import ObjectInfo, is_key
from tasks.store.local_cache import LocalCache
from tasks.store.lock import StoreLock, abandoned_locks, held
from tasks.store.manifest import MANIFEST, Manifest, ManifestEntry, decode_manifest, encode_manifest
from tasks.store.publication import fetch_folder
from tests.fuzz.fuzzing import counts, fuzz, json_bytes, mutated_bytes, mutated_value, nasty

ADDRESS = "targets/0a/1b"
CONTENT = b"weights"
ENTRIES = tuple(
    ManifestEntry(name=name, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest(), stored_as=stored_as)
    for name, stored_as in (("config.json", "config.json"), ("deep/model.safetensors", "deep/model.0123.safetensors"))
)
VALID = Manifest(stage="train", address=ADDRESS, entries=ENTRIES, created_by="fuseline 1", metadata={"subject": "a"})
NAMES = (
    "../../../outside",
    "/outside",
    "a/../../../outside",
    "..",
    "deep/../../../outside",
    "deep",
    "config.json",
    "\0",
)


class ListedStore(FolderStore):
    """A folder whose listing is what somebody says."""

    listing: tuple[ObjectInfo, ...] = ()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from (info for info in self.listing if info.key.startswith(prefix) and is_key(info.key))


def sealed(fields: Any) -> bytes:
    """Write fields as a manifest with the checksum that belongs to them, as somebody who means harm would."""
    try:
        content = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if isinstance(fields, dict):
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
            fields = fields | {"content_sha256": digest}
        return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode(
            "utf-8", "surrogatepass"
        )
    except (RecursionError, TypeError):
        return b"[" * 5000


def make_manifest(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutated_bytes(rng, encode_manifest(VALID))
    fields = mutated_value(rng, VALID.model_dump(mode="json"))
    if isinstance(fields, dict) and rng.random() < 0.4:
        entries = fields.get("entries")
        entry = rng.choice(entries) if isinstance(entries, list) and entries else {}
        if isinstance(entry, dict):
            entry[rng.choice(("name", "stored_as"))] = rng.choice(NAMES)
    return sealed(fields)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """A store with the objects of one publication."""
    made = FolderStore(tmp_path / "store")
    for entry in ENTRIES:
        made.write(f"{ADDRESS}/{entry.stored_as}", CONTENT)
    return made


@counts
def test_manifests(count: int, store: FolderStore, tmp_path: Path) -> None:
    path = store.root / ADDRESS / MANIFEST

    def read(content: bytes) -> None:
        path.write_bytes(content)
        manifest = decode_manifest(content, ADDRESS)
        assert encode_manifest(manifest) == content
        with LocalCache(tmp_path / "cache", 1 << 20) as cache:
            folder = fetch_folder(store, cache, ADDRESS)
            for entry in manifest.entries:
                assert (folder / entry.name).read_bytes() == CONTENT
        verify(store)
        read_contents(store)

    fuzz(count, make_manifest, read, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "cache"}


@counts
def test_indices_of_checkpoints(count: int, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    checkpoints = StoredCheckpoints(store, ADDRESS, 2)
    local = tmp_path / "local" / "step-00000002"
    local.mkdir(parents=True)
    for name in ("state.json", "model.safetensors"):
        (local / name).write_bytes(CONTENT)
    checkpoints.put(local)
    index = json.loads(store.read(f"{ADDRESS}/checkpoints/step-00000002/index.json"))
    path = store.root / ADDRESS / "checkpoints" / "step-00000002" / "index.json"

    def make(rng: random.Random) -> bytes:
        changed = mutated_value(rng, index)
        if rng.random() < 0.4:
            changed = {**index, rng.choice(NAMES): index["state.json"]}
        return json_bytes(changed)

    fetched: list[int] = []

    def read(content: bytes) -> None:
        path.write_bytes(content)
        folder = tmp_path / "fetched" / str(len(fetched))
        fetched.append(1)
        folder.mkdir(parents=True)
        checkpoints.fetch_newest(folder)
        assert {one.name for one in folder.iterdir()} <= {"step-00000002"}
        if not any(folder.iterdir()):
            raise StoreError("nothing was fetched.")

    fuzz(count, make, read, tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"store", "local", "fetched"}


SETTINGS = {"name": "new", "hub": "somebody/a-model", "revision": "main", "dtype": "auto"}


@counts
def test_settings_of_landed_sources(count: int, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    config: Any = SimpleNamespace(refusion=SimpleNamespace(store_folder="mine"), name="mine")
    workplace: Any = SimpleNamespace(store=store)

    def make(rng: random.Random) -> bytes:
        text = json_bytes(mutated_value(rng, SETTINGS))
        return mutated_bytes(rng, text) if rng.random() < 0.3 else text

    def read(content: bytes) -> None:
        store.write("sources/mine/new.json", content)
        (source,) = _stored(workplace, config)
        assert source.model is not None or source.fault
        fetch_source(workplace, config, source)

    fuzz(count, make, read, tmp_path)


KEYS = (
    *("locks/run-a/00000001", "locks/run-a/x", "locks/run-a/99999999", "locks/run-a/-0000001", "locks/a", "locks//a"),
    *("sources/mine/one/_SUCCESS", "sources/mine/../x/_SUCCESS", "sources/mine/.json", "sources/mine/a.json"),
    *(f"{ADDRESS}/{MANIFEST}", f"{ADDRESS}/checkpoints/index.json", f"{ADDRESS}/checkpoints/step-x/index.json"),
    *(f"{ADDRESS}/checkpoints/step-00000009/index.json", f"{ADDRESS}/config.json", MANIFEST, f"/{MANIFEST}"),
    *("../outside", "/etc/passwd", "a//b", "a/./b", "\ud800", "a\nb", "", "é/ü", ".partial/x", "a" * 300),
    *("sources/mine", f"datasets/x/y/z/{MANIFEST}"),
)


@counts
def test_consumers_of_listings(count: int, tmp_path: Path) -> None:
    store = ListedStore(tmp_path / "store")
    config: Any = SimpleNamespace(
        refusion=SimpleNamespace(store_folder="mine", look_in=("store",)),
        name="mine",
        sources=(),
        pivot=SimpleNamespace(name="pivot"),
    )
    workplace: Any = SimpleNamespace(store=store)

    def make(rng: random.Random) -> list[ObjectInfo]:
        return [
            ObjectInfo(rng.choice(KEYS), rng.choice((0, 1, -1, 2**63, 10**30)), rng.choice((0.0, -1.0, 1e18, 1.7e9)))
            for _ in range(rng.randrange(8))
        ]

    def read(listing: list[ObjectInfo]) -> None:
        store.listing = tuple(listing)
        read_contents(store)
        collect_garbage(store, [ADDRESS], delete=False)
        for source in list_landed(workplace, cast(Any, config)):
            assert source.name and "/" not in source.name
        StoreLock(store, "run-a").top()
        abandoned_locks(store)
        StoredCheckpoints(store, ADDRESS, 1).fetch_newest(tmp_path / "fetched")
        if any(not is_key(info.key) for info in listing):
            raise StoreError("a key that is none of ours was left out.")

    fuzz(count, make, read, tmp_path)


OWNER = {"owner": "0a", "host": "elsewhere", "pid": 1, "started": 1.0, "renewals": 3}


@counts
def test_what_owners_of_locks_write(count: int, tmp_path: Path) -> None:
    from tasks.store.owners import host

    store = FolderStore(tmp_path / "store")

    def make(rng: random.Random) -> bytes:
        owner = mutated_value(rng, OWNER | {"host": host()})
        if isinstance(owner, dict) and rng.random() < 0.5:
            owner[rng.choice(("pid", "started"))] = nasty(rng)
        return json_bytes(owner)

    def read(content: bytes) -> None:
        store.write("locks/a/00000001", content)
        gone = abandoned_locks(store)
        if gone == ["a"]:
            with held(store, "a", "Somebody works", 0.0):
                pass
            raise StoreError("its owner was gone.")

    fuzz(count, make, read, tmp_path)
