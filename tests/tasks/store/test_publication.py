"""A publication is whole or absent, whatever is killed, races, fails or changes its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from fusion_core.errors import StoreError
from tasks.store import s3 as s3_store_module
from tasks.store.collection import read_contents, verify
from tasks.store.folder import FolderStore
from tasks.store.interface import BrokenObjectError, Store
from tasks.store.local_cache import LocalCache
from tasks.store.manifest import MANIFEST, Manifest, decode_manifest, encode_manifest, read_manifest
from tasks.store.publication import Publication, discard, fetch_file, fetch_folder, find_artifact
from tasks.store.s3 import S3Store
from tests.tasks.faulty_proxy import faulty_proxy
from tests.tasks.object_server import BUCKET, ObjectServer
from tests.tasks.publishing_worker import (
    ADDRESS,
    REPOSITORY,
    SHARDS,
    shard_bytes,
    start_worker,
    worker_arguments,
    written,
)


def publish(store: Store, scratch: Path, seed: int = 0, stop_before: str | None = None) -> list[str]:
    """Publish the worker's three shards, and return the names of those that had to be computed."""
    publication = Publication(store, ADDRESS)
    computed = []
    for name in SHARDS:
        if name == stop_before:
            return computed
        if publication.finished(name) is None:
            publication.add(name, written(scratch, name, shard_bytes(name, seed)))
            computed.append(name)
    publication.finish(stage="extract", metadata={"inputs": [], "seed": seed})
    return computed


def damage(store: Store, name: str, how: str) -> None:
    """Change an object behind the store's back."""
    key = f"{ADDRESS}/{name}"
    data = store.read(key)
    changed = {"truncated": data[:-1], "one byte": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "missing": None}[how]
    if isinstance(store, FolderStore):
        path = store.root / key
        path.unlink() if changed is None else path.write_bytes(changed)
        return
    assert isinstance(store, S3Store)
    if changed is None:
        store._client.delete_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}")
    else:
        store._client.put_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}", Body=changed)


def test_a_publication_is_found_whole(store: Store, cache: LocalCache, tmp_path: Path) -> None:
    assert find_artifact(store, ADDRESS) is None
    publication = Publication(store, ADDRESS)
    for name in ("model.safetensors", "nested/config.json"):
        entry = publication.add(name, written(tmp_path, name, shard_bytes(name)))
        assert entry.sha256 == hashlib.sha256(shard_bytes(name)).hexdigest()
    assert publication.manifest() is None and find_artifact(store, ADDRESS) is None
    artifact = publication.finish(stage="train", metadata={"inputs": ["fused/a"], "loss": 1.5})
    assert not artifact.reused and (artifact.objects, artifact.bytes) == (2, 400_000)
    found = find_artifact(store, ADDRESS)
    assert found == artifact.model_copy(update={"reused": True, "seconds": 0.0})
    assert found.digest == hashlib.sha256(store.read(f"{ADDRESS}/{MANIFEST}")).hexdigest()
    folder = fetch_folder(store, cache, ADDRESS)
    assert (folder / "nested/config.json").read_bytes() == shard_bytes("nested/config.json")
    assert (folder / "model.safetensors").read_bytes() == shard_bytes("model.safetensors")


def test_the_manifest_has_equal_bytes_for_equal_results(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "one")
    first = store.read(f"{ADDRESS}/{MANIFEST}")
    discard(store, ADDRESS)
    assert list(store.list()) == []
    time.sleep(1.1)
    publish(store, tmp_path / "two")
    assert store.read(f"{ADDRESS}/{MANIFEST}") == first


def test_an_unfinished_publication_resumes_shard_by_shard(store: Store, tmp_path: Path) -> None:
    assert publish(store, tmp_path / "one", stop_before=SHARDS[2]) == list(SHARDS[:2])
    assert find_artifact(store, ADDRESS) is None
    assert publish(store, tmp_path / "two") == [SHARDS[2]]
    assert publish(store, tmp_path / "three") == []
    assert verify(store) == []


@pytest.mark.parametrize("how", ["truncated", "one byte"])
def test_a_changed_shard_is_not_resumed_from(store: Store, tmp_path: Path, how: str, cache: LocalCache) -> None:
    publish(store, tmp_path / "one", stop_before=SHARDS[2])
    damage(store, SHARDS[0], how)
    assert publish(store, tmp_path / "two") == [SHARDS[0], SHARDS[2]]
    assert verify(store) == []
    folder = fetch_folder(store, cache, ADDRESS)
    assert [(folder / name).read_bytes() for name in SHARDS] == [shard_bytes(name) for name in SHARDS]
    assert read_contents(store).strays == ()


def test_a_checksum_record_that_is_no_text_is_made_anew(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, tmp_path / "one", stop_before=SHARDS[2])
    (folder_store.root / ".sha256" / ADDRESS / SHARDS[0]).write_bytes(b"\xff\xfe\x80")
    assert publish(folder_store, tmp_path / "two") == [SHARDS[0], SHARDS[2]]
    assert verify(folder_store) == []


@pytest.mark.parametrize("how", ["truncated", "one byte", "missing"])
def test_a_broken_object_is_named_and_it_alone_is_computed_again(
    store: Store, cache: LocalCache, tmp_path: Path, how: str
) -> None:
    publish(store, tmp_path / "one")
    damage(store, SHARDS[1], how)
    manifest = read_manifest(store, ADDRESS)
    fetch_file(store, cache, ADDRESS, manifest.entry(SHARDS[0]))
    for read in (
        lambda: fetch_file(store, cache, ADDRESS, manifest.entry(SHARDS[1])),
        lambda: fetch_folder(store, cache, ADDRESS),
    ):
        with pytest.raises(BrokenObjectError) as error:
            read()
        assert (error.value.address, error.value.name) == (ADDRESS, SHARDS[1])
        assert SHARDS[1] in str(error.value) and ADDRESS in str(error.value)
    assert [(broken.address, broken.name) for broken in verify(store)] == [(ADDRESS, SHARDS[1])]
    discard(store, ADDRESS, SHARDS[1])
    assert find_artifact(store, ADDRESS) is None
    assert publish(store, tmp_path / "two") == [SHARDS[1]]
    folder = fetch_folder(store, cache, ADDRESS)
    assert [(folder / name).read_bytes() for name in SHARDS] == [shard_bytes(name) for name in SHARDS]


@pytest.mark.parametrize("how", ["truncated", "one byte"])
def test_a_broken_manifest_is_named_and_nothing_is_computed_again(store: Store, tmp_path: Path, how: str) -> None:
    publish(store, tmp_path / "one")
    damage(store, MANIFEST, how)
    with pytest.raises(BrokenObjectError, match=r"'manifest\.json' of distributions/model/data/spec") as error:
        find_artifact(store, ADDRESS)
    discard(store, error.value.address, error.value.name)
    assert publish(store, tmp_path / "two") == []
    assert find_artifact(store, ADDRESS).objects == 3


def test_a_manifest_of_another_address_or_version(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, tmp_path / "one")
    folder_store.write("distributions/other/manifest.json", folder_store.read(f"{ADDRESS}/{MANIFEST}"))
    with pytest.raises(BrokenObjectError, match=f"it belongs to {ADDRESS}"):
        find_artifact(folder_store, "distributions/other")
    manifest = read_manifest(folder_store, ADDRESS)
    later = encode_manifest(manifest.model_copy(update={"schema_version": 2}))
    with pytest.raises(StoreError, match="schema version 2, this Fuseline reads 1"):
        decode_manifest(later, ADDRESS)


def test_every_changed_byte_of_a_manifest_is_noticed() -> None:
    manifest = Manifest(stage="s", address="a/b", entries=(), created_by="f", metadata={"x": 1.5, "é": [None, True]})
    data = encode_manifest(manifest)
    assert decode_manifest(data, "a/b") == manifest
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            assert decode_manifest(changed, "a/b") == manifest  # white space between the fields
        except BrokenObjectError:
            continue


def test_metadata_must_be_json(folder_store: FolderStore, tmp_path: Path) -> None:
    publication = Publication(folder_store, ADDRESS)
    with pytest.raises(StoreError, match="NaN or infinity"):
        publication.finish(stage="s", metadata={"loss": float("nan")})
    with pytest.raises(ValidationError):
        publication.finish(stage="s", metadata={"path": tmp_path})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", MANIFEST])
def test_names_stay_inside_the_publication(folder_store: FolderStore, tmp_path: Path, name: str) -> None:
    publication = Publication(folder_store, ADDRESS)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError):
        publication.add(name, tmp_path / "file")
    with pytest.raises(StoreError):
        publication.finished(name)
    with pytest.raises(StoreError, match="cannot be a key"):
        Publication(folder_store, "distributions/../../x")


def test_broken_object_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(BrokenObjectError("a/b", "c", "it is missing")))
    assert (error.address, error.name, str(error)) == ("a/b", "c", str(BrokenObjectError("a/b", "c", "it is missing")))


def test_an_object_that_vanishes_before_the_manifest_stops_it(store: Store, tmp_path: Path) -> None:
    publication = Publication(store, ADDRESS)
    (tmp_path / "file").write_bytes(b"x")
    publication.add("one", tmp_path / "file")
    store.delete([f"{ADDRESS}/one"])
    with pytest.raises(BrokenObjectError, match=r"'one' .* is gone before the manifest"):
        publication.finish(stage="s", metadata={})
    assert find_artifact(store, ADDRESS) is None


def test_files_of_an_artifact_keep_their_names_beside_anothers_bytes(
    store: Store, cache: LocalCache, tmp_path: Path
) -> None:
    """Two workers whose bytes differ: the first manifest wins, and no result is mixed of both."""
    workers = [Publication(store, ADDRESS) for _ in range(2)]
    for first, name in ((0, SHARDS[0]), (1, SHARDS[1])):
        for seed in (first, 1 - first):
            workers[seed].add(name, written(tmp_path, name, shard_bytes(name, seed)))
    won = workers[1].finish(stage="train", metadata={"inputs": [], "seed": 1})
    lost = workers[0].finish(stage="train", metadata={"inputs": [], "seed": 0})
    assert not won.reused and lost.reused and lost.digest == won.digest and lost.metadata["seed"] == 1
    folder = fetch_folder(store, cache, ADDRESS)
    for name in SHARDS[:2]:
        assert (folder / name).read_bytes() == shard_bytes(name, 1)
    assert verify(store) == []
    assert read_contents(store).strays == ()


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["equal bytes", "other bytes"])
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_two_processes_race_for_one_address(
    kind: str, seeds: tuple[int, int], request: pytest.FixtureRequest, cache: LocalCache
) -> None:
    store: Store = request.getfixturevalue(f"{kind}_store")
    workers = [start_worker(worker_arguments(store, seed=seed, wait=True)) for seed in seeds]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=60)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    artifacts = [json.loads(output[-1]) for output in outputs]
    assert artifacts[0]["digest"] == artifacts[1]["digest"] == find_artifact(store, ADDRESS).digest
    if seeds[0] != seeds[1]:
        assert sorted(artifact["reused"] for artifact in artifacts) == [False, True]
    assert verify(store) == []
    contents = read_contents(store)
    assert len(contents.artifacts) == 1 and contents.strays == contents.unfinished == ()
    folder = fetch_folder(store, cache, ADDRESS)
    for name in SHARDS:
        assert (folder / name).read_bytes() in [shard_bytes(name, seed) for seed in seeds]


@pytest.mark.parametrize(
    ("moment", "name", "found"),
    [
        ("amid", SHARDS[1], 1),
        ("before", SHARDS[1], 1),
        ("after", SHARDS[1], 1),  # placed, but its checksum is not written yet
        ("before", MANIFEST, 3),
        ("after", MANIFEST, None),
    ],
)
def test_a_kill_costs_at_most_the_shard_in_flight(
    folder_store: FolderStore, tmp_path: Path, moment: str, name: str, found: int | None
) -> None:
    worker = start_worker(worker_arguments(folder_store, kill=(moment, name)))
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    if found is None:
        assert find_artifact(folder_store, ADDRESS).objects == 3
    else:
        assert find_artifact(folder_store, ADDRESS) is None
        assert publish(folder_store, tmp_path / "again") == list(SHARDS[found:])
    assert verify(folder_store) == []
    assert all((folder_store.root / ADDRESS / name).read_bytes() == shard_bytes(name) for name in SHARDS)
    uninterrupted = FolderStore(tmp_path / "uninterrupted")
    publish(uninterrupted, tmp_path / "scratch")
    assert uninterrupted.read(f"{ADDRESS}/{MANIFEST}") == folder_store.read(f"{ADDRESS}/{MANIFEST}")


@pytest.mark.parametrize(("name", "found"), [(SHARDS[1], 1), (MANIFEST, 3)])
def test_a_kill_amid_a_request_costs_at_most_the_shard_in_flight(
    s3_store: S3Store, aws_environment: ObjectServer, tmp_path: Path, name: str, found: int
) -> None:
    with faulty_proxy(aws_environment.endpoint_url, only=("PUT", name), only_fault="stall") as proxy:
        worker = start_worker(worker_arguments(s3_store, endpoint=proxy.endpoint_url))
        assert proxy.stalled.wait(60)
        worker.kill()
        worker.communicate()
    assert find_artifact(s3_store, ADDRESS) is None
    assert publish(s3_store, tmp_path / "again") == list(SHARDS[found:])
    assert verify(s3_store) == []


def test_a_kill_amid_a_multipart_upload_leaves_only_an_unfinished_upload(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_store_module, "MULTIPART_THRESHOLD_BYTES", 5 << 20)
    (tmp_path / "file").write_bytes(os.urandom(11 << 20))
    prefix = f"tests/{tmp_path.name}"
    with faulty_proxy(aws_environment.endpoint_url, only=("PUT", "a/large"), only_fault="stall") as proxy:
        script = f"""
from pathlib import Path
from tasks.store import s3 as s3_store
s3_store.MULTIPART_THRESHOLD_BYTES = 5 << 20
store = s3_store.S3Store({BUCKET!r}, {prefix!r}, endpoint_url={proxy.endpoint_url!r})
store.upload("a/large", Path({str(tmp_path / "file")!r}), if_absent=True)
"""
        child = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY)
        assert proxy.stalled.wait(60)
        child.kill()
        child.wait()
    store = S3Store(BUCKET, prefix, endpoint_url=aws_environment.endpoint_url)
    assert list(store.list()) == []
    leftovers = list(store.leftovers(0))
    assert [info.key.partition("?")[0] for info in leftovers] == ["a/large"]
    store.delete_leftovers(leftovers)
    assert list(store.leftovers(0)) == []
    assert store.upload("a/large", tmp_path / "file", if_absent=True)


def test_publishing_over_a_failing_server(aws_environment: ObjectServer, cache: LocalCache, tmp_path: Path) -> None:
    with faulty_proxy(aws_environment.endpoint_url, every=10) as proxy:
        store = S3Store(BUCKET, f"tests/{tmp_path.name}", endpoint_url=proxy.endpoint_url, read_timeout_seconds=0.5)
        for round_number in range(6):
            assert publish(store, tmp_path / str(round_number)) == list(SHARDS)
            folder = fetch_folder(store, cache, ADDRESS)
            assert [(folder / name).read_bytes() for name in SHARDS] == [shard_bytes(name) for name in SHARDS]
            discard(store, ADDRESS)
            cache.close()
        assert len(proxy.faults) == 6, proxy.faults


def test_a_manifest_whose_answer_was_lost_is_ones_own(aws_environment: ObjectServer, tmp_path: Path) -> None:
    only = ("PUT", MANIFEST)
    with faulty_proxy(aws_environment.endpoint_url, only=only, only_fault="lost answer", only_times=1) as proxy:
        store = S3Store(BUCKET, f"tests/{tmp_path.name}", endpoint_url=proxy.endpoint_url)
        publication = Publication(store, ADDRESS)
        artifact = publication.finish(stage="s", metadata={})
        assert proxy.faults["lost answer"] == 1
    assert not artifact.reused
