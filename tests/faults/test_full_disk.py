"""The disk fills while a stage works: one sentence, and once there is room again the run goes on to the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.fusions import Fusions, Home, check_rerun

ROOM_MEGABYTES = 64
STAGES = {
    "prepare": ("fill_the_disk", "datasets/"),
    "extract": ("fill_the_disk", "distributions/"),
    "fuse": ("fill_the_disk", "fused/"),
    "train": ("fill_the_disk", "targets/"),
    "merge": ("fill_the_disk", "merged/"),
    "evaluate": ("fill_the_disk", "scores/"),
    "report": ("fill_the_disk_for_the_report", ""),
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_MEGABYTES}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def home_on(fusions: Fusions, disk: Path) -> Home:
    return replace(fusions, root=disk).home("home")


def marked(stage: str) -> object:
    return pytest.param(stage, marks=() if stage == "train" else pytest.mark.slow)


@pytest.mark.parametrize("stage", [marked(stage) for stage in STAGES])
def test_a_full_disk_stops_a_stage_with_one_sentence(
    fusions: Fusions, undisturbed: Undisturbed, small_disk: Path, stage: str
) -> None:
    home = home_on(fusions, small_disk)
    hook, argument = STAGES[stage]
    stopped = fusions.run(home, hook, argument)
    assert stopped.status == 2, stopped.errors[-3000:]
    said = [line for line in stopped.errors.splitlines() if line.startswith("fuseline: ")]
    assert len(said) == 1 and "Traceback" not in stopped.errors, stopped.errors[-3000:]
    assert any(word in said[0] for word in ("disk", "No space left", "room")), said
    (home.folder / "ballast").unlink()
    before = home.whole()
    outcome = fusions.run(home, "record_work", str(home.folder / "recorded"))
    check_rerun(home, before, outcome, undisturbed.digests)
