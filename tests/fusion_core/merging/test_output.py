"""Where a merge writes: whole or not at all, over an earlier merge only, and over no input."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch

from fusion_core.errors import MergeError
from fusion_core.merging import MergeReport, MergeSpec, merge_checkpoints, output
from fusion_core.merging.output import whole_folder
from fusion_core.merging.report import JSON_NAME
from tests.fusion_core.merging.checkpoints import load, save, save_all


def earlier_merge(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / JSON_NAME).write_text("earlier", encoding="utf-8")
    return folder


def test_a_failure_removes_the_folders_made_for_the_output_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_folder(tmp_path / "a" / "b" / "merged"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("succeeds", [True, False])
def test_an_earlier_merge_that_a_killed_run_moved_away_comes_back(tmp_path: Path, succeeds: bool) -> None:
    earlier_merge(tmp_path / ".merged.replaced")
    try:
        with whole_folder(tmp_path / "merged") as folder:
            assert (tmp_path / "merged" / JSON_NAME).read_text(encoding="utf-8") == "earlier"
            (folder / JSON_NAME).write_text("new", encoding="utf-8")
            if not succeeds:
                raise KeyError
    except KeyError:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (tmp_path / "merged" / JSON_NAME).read_text(encoding="utf-8") == ("new" if succeeds else "earlier")


def test_an_earlier_merge_is_removed_only_when_the_new_one_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier_merge(tmp_path / "merged")
    remove = shutil.rmtree

    def watched(path: Path, **settings: bool) -> None:
        assert (tmp_path / "merged" / JSON_NAME).read_text(encoding="utf-8") == "new"
        remove(path, **settings)

    monkeypatch.setattr(shutil, "rmtree", watched)
    with whole_folder(tmp_path / "merged") as folder:
        (folder / JSON_NAME).write_text("new", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_merge_that_ends_while_another_begins_keeps_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, merged = tmp_path / ".merged.partial", tmp_path / "merged"
    lock = fcntl.flock

    def other_ends_first(descriptor: int, operation: int) -> None:
        if not merged.exists():
            (partial / JSON_NAME).write_text("other", encoding="utf-8")
            partial.rename(merged)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", other_ends_first)
    with whole_folder(merged) as folder:
        # A third one finds the place taken, although the lock that was first got is on what is now the output.
        with pytest.raises(MergeError, match="Another merge writes"), whole_folder(merged):
            pass
        assert (merged / JSON_NAME).read_text(encoding="utf-8") == "other"
        (folder / JSON_NAME).write_text("new", encoding="utf-8")
    assert (merged / JSON_NAME).read_text(encoding="utf-8") == "new"


def test_what_came_to_the_outputs_place_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="is no earlier merge"), whole_folder(tmp_path / "merged"):
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "thesis.txt").write_text("precious", encoding="utf-8")
    assert [path.name for path in tmp_path.rglob("*")] == ["merged", "thesis.txt"]


def test_links_are_followed_to_the_output_and_never_to_be_emptied(tmp_path: Path) -> None:
    place = earlier_merge(tmp_path / "elsewhere" / "merge")
    link = tmp_path / "link"
    link.symlink_to(place)
    with whole_folder(link) as folder:
        (folder / JSON_NAME).write_text("new", encoding="utf-8")
    assert link.is_symlink() and (place / JSON_NAME).read_text(encoding="utf-8") == "new"
    (tmp_path / ".merged.partial").symlink_to(place)
    with pytest.raises(OSError, match=r"merged\.partial"), whole_folder(tmp_path / "merged"):
        pass
    assert (place / JSON_NAME).exists()


def test_a_home_folder_is_the_same_place_to_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tensors = {"w": torch.ones(3)}
    pivot, targets = save_all(tmp_path, tensors, [tensors])
    with pytest.raises(MergeError, match="one of the inputs"):
        merge_checkpoints(pivot, targets, Path("~/pivot"), MergeSpec())
    merge_checkpoints(pivot, targets, Path("~/merged"), MergeSpec())
    assert load(tmp_path / "merged").keys() == {"w"}


def test_an_earlier_merge_that_holds_an_input_is_not_replaced(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(3)}
    merged = earlier_merge(tmp_path / "merged")
    inside = save(merged / "checkpoint", tensors)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(inside / "model.safetensors")
    for folders in ((inside, [inside]), (linked, [linked])):
        with pytest.raises(MergeError, match="is or holds one of the inputs"):
            merge_checkpoints(*folders, merged, MergeSpec())
    assert load(inside).keys() == {"w"}


def test_an_error_without_a_files_name_says_where_it_happened(tmp_path: Path) -> None:
    def fill_disk(folder: Path, report: MergeReport) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tensors = {"w": torch.ones(3)}
    folders = save_all(tmp_path, tensors, [tensors])
    with pytest.raises(MergeError, match=rf"The merge into {tmp_path}/merged stopped: No space left on device; free"):
        merge_checkpoints(*folders, tmp_path / "merged", MergeSpec(), complete=fill_disk)
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(3):
        with whole_folder(tmp_path / "merged") as folder:
            (folder / JSON_NAME).write_text("whole", encoding="utf-8")
    descriptor = os.open(tmp_path / "merged", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert output.check_replaceable(tmp_path / "merged") is None
