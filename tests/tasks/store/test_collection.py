"""The store as a whole: what is listed, what it weighs, what is broken, and what nobody needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.errors import StoreError
from tasks.store.collection import collect_garbage, disk_usage, list_artifacts, read_contents, verify
from tasks.store.folder import FolderStore
from tasks.store.interface import Store
from tasks.store.publication import Publication, find_artifact
from tests.tasks.publishing_worker import written


def publish(store: Store, scratch: Path, address: str, inputs: list[str], size: int = 100, finish: bool = True) -> None:
    publication = Publication(store, address)
    publication.add("nested/one.bin", written(scratch, "nested/one.bin", address.encode() * size))
    if finish:
        publication.finish(stage=address.partition("/")[0], metadata={"inputs": inputs})


@pytest.fixture
def fusion(store: Store, tmp_path: Path) -> Store:
    """A store with a fused model, what it was made from, an old target, an unfinished stage and a stray file."""
    publish(store, tmp_path, "datasets/d", [])
    publish(store, tmp_path, "distributions/pivot", ["datasets/d"])
    publish(store, tmp_path, "distributions/old", ["datasets/d"])
    publish(store, tmp_path, "targets/new", ["distributions/pivot"])
    publish(store, tmp_path, "targets/old", ["distributions/old"])
    publish(store, tmp_path, "merged/m", ["targets/new"])
    publish(store, tmp_path, "distributions/half", ["datasets/d"], finish=False)
    store.write("targets/new/forgotten.bin", b"1234")
    return store


def test_listing(fusion: Store) -> None:
    listed = list_artifacts(fusion)
    assert [stored.address for stored in listed] == [
        "datasets/d",
        "distributions/old",
        "distributions/pivot",
        "merged/m",
        "targets/new",
        "targets/old",
    ]
    assert listed[3].stage == "merged" and listed[3].inputs == ("targets/new",)
    assert listed[3].artifact == find_artifact(fusion, "merged/m")
    contents = read_contents(fusion)
    assert [publication.address for publication in contents.unfinished] == ["distributions/half/nested"]
    assert [info.key for info in contents.strays] == ["targets/new/forgotten.bin"]


def test_disk_usage(fusion: Store) -> None:
    usage = disk_usage(fusion)
    assert usage.by_stage["datasets"] == (len("datasets/d") * 100, 1)
    assert usage.by_stage["targets"] == (len("targets/newtargets/old") * 100, 2)
    assert usage.by_stage["unfinished"] == (len("distributions/half") * 100, 1)
    assert usage.by_stage["stray"] == (4, 1)
    assert (usage.bytes, usage.objects) == tuple(map(sum, zip(*usage.by_stage.values(), strict=True)))


def test_verify_reports_progress_and_reads_only_when_told(fusion: Store) -> None:
    key = "targets/old/nested/one.bin"
    fusion.write(key, fusion.read(key)[:-1] + b"x")
    steps: list[tuple[int, int]] = []
    broken = verify(fusion, progress=lambda done, total: steps.append((done, total)))
    assert [(item.address, item.name) for item in broken] == [("targets/old", "nested/one.bin")]
    assert "SHA-256" in broken[0].found
    assert len(steps) == 6 and steps[-1][0] == steps[-1][1] == 100 * len(
        "".join(x.address for x in list_artifacts(fusion))
    )
    assert verify(fusion, read=False) == []
    assert verify(fusion, ["targets/new"]) == []
    assert [item.found for item in verify(fusion, ["targets/absent"])] == ["it is missing from the store"]


def test_garbage_is_shown_first_and_deleted_when_told(fusion: Store) -> None:
    before = [info.key for info in fusion.list()]
    roots = {"merged/m", "scores/planned-only"}
    shown = collect_garbage(fusion, roots, delete=False, older_than_seconds=0)
    assert [info.key for info in fusion.list()] == before and not shown.deleted
    assert [stored.address for stored in shown.unneeded] == ["distributions/old", "targets/old"]
    assert [publication.address for publication in shown.unfinished] == ["distributions/half/nested"]
    assert [info.key for info in shown.strays] == ["targets/new/forgotten.bin"]
    assert shown.kept == ("datasets/d", "distributions/pivot", "merged/m", "targets/new")
    assert shown.bytes == 100 * len("distributions/oldtargets/olddistributions/half") + 4

    deleted = collect_garbage(fusion, roots, delete=True, older_than_seconds=0)
    assert deleted.deleted and deleted.bytes == shown.bytes
    assert [stored.address for stored in list_artifacts(fusion)] == list(shown.kept)
    assert verify(fusion) == []
    assert collect_garbage(fusion, roots, delete=True, older_than_seconds=0).bytes == 0


def test_what_a_run_may_be_writing_is_no_garbage(fusion: Store) -> None:
    young = collect_garbage(fusion, {"merged/m"}, delete=False)
    assert young.unneeded == young.unfinished == young.strays == young.leftovers == ()
    assert "targets/old" in young.kept
    planned = collect_garbage(fusion, {"merged/m", "distributions/half"}, delete=False, older_than_seconds=0)
    assert planned.unfinished == ()


def test_without_a_root_everything_would_go_so_nothing_does(fusion: Store) -> None:
    before = [info.key for info in fusion.list()]
    with pytest.raises(StoreError, match=r"No model is registered and no recipe is named.*--recipe"):
        collect_garbage(fusion, (), delete=True, older_than_seconds=0)
    assert [info.key for info in fusion.list()] == before


def test_nothing_is_deleted_while_a_needed_manifest_is_broken(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, tmp_path, "datasets/d", [])
    publish(folder_store, tmp_path, "merged/m", ["datasets/d"])
    folder_store.write("merged/m/manifest.json", b"{")
    with pytest.raises(StoreError, match="manifest of merged/m, which is needed, is broken"):
        collect_garbage(folder_store, {"merged/m"}, delete=True, older_than_seconds=0)
    assert folder_store.exists("datasets/d/nested/one.bin")
    assert [(item.address, item.name) for item in verify(folder_store)] == [("merged/m", "manifest.json")]
