"""Work folders that killed processes left go with the next run or the clean-up; those in use or resumed stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.settings import Settings
from tasks.store.local_leftovers import delete_local_leftovers, find_local_leftovers
from tasks.store.owners import temporary_name
from tasks.store.work_folders import locked_folder, remove_leftovers, remove_unless_locked, work_name
from tasks.store.workplace import Stage, compute_once, open_workplace

ADDRESS = "distributions/a/b"
DIE = """
import os, signal, sys
from pathlib import Path
from tasks.store.work_folders import locked_folder
for name in sys.argv[2:]:
    locked_folder(Path(sys.argv[1]), name).__enter__().joinpath("half").write_text("x" * 10)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    return Settings()


def leave(root: Path, *names: str) -> None:
    """Leave work folders as a process does that is killed in them."""
    done = subprocess.run([sys.executable, "-c", DIE, str(root), *names], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert all((root / name / "half").is_file() for name in names)


def names_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_a_killed_part_goes_when_its_stage_is_whole(settings: Settings) -> None:
    root, other = settings.work_folder, work_name("distributions/a/bc", 0)
    leave(root, work_name(ADDRESS, 0), work_name(ADDRESS, 17), other)
    stage = Stage("extract", "x", ADDRESS, uses_device=False)
    compute_once(open_workplace(), stage, lambda publication, folder, run: {"is_there": folder.is_dir()})
    assert names_in(root) == {other, f"{other}.lock"}
    # A run that finds the stage whole removes what it finds too.
    leave(root, work_name(ADDRESS), work_name(ADDRESS, 1))
    assert compute_once(open_workplace(), stage, lambda *_: pytest.fail("it is whole")).reused
    assert names_in(root) == {other, f"{other}.lock"}


def test_a_folder_in_use_stays(tmp_path: Path) -> None:
    name = work_name(ADDRESS, 0)
    with locked_folder(tmp_path, name) as folder:
        remove_leftovers(tmp_path, ADDRESS)
        assert not remove_unless_locked(tmp_path, name)
        assert folder.is_dir()
    assert names_in(tmp_path) == set()


def test_what_a_failed_part_made_is_there_for_the_next_try(tmp_path: Path) -> None:
    name = work_name(ADDRESS, 0)
    with pytest.raises(ValueError, match="stopped"), locked_folder(tmp_path, name) as folder:
        (folder / "made").touch()
        raise ValueError("stopped")
    with locked_folder(tmp_path, name) as folder:
        assert (folder / "made").exists()


def test_the_clean_up_takes_what_no_recipe_resumes(settings: Settings) -> None:
    root, kept = settings.work_folder, work_name("targets/kept/x")
    names = (work_name(ADDRESS), work_name(ADDRESS, 3), kept, work_name("targets/kept/x", 0))
    leave(root, *names)
    busy = settings.sources_folder / temporary_name()
    elsewhere = settings.sources_folder / f"{'0' * 12}-1-1-{'0' * 32}"
    fetched = settings.sources_folder / ("ab" * 16)
    for folder in (busy, elsewhere, fetched):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 7)
    assert find_local_leftovers(settings, {"targets/kept/x"}) == ()
    long_ago = time.time() - 90_000
    for folder in (root, elsewhere, fetched):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (long_ago, long_ago))
    with locked_folder(root, names[1]):
        found = find_local_leftovers(settings, {"targets/kept/x"})
        os.utime(root / names[1], (long_ago, long_ago))
        assert {leftover.path for leftover in found} == {root / names[0], elsewhere}
        assert sum(leftover.bytes for leftover in found) == 17
        # What begins to be used between the look and the deletion stays.
        with locked_folder(root, names[0]):
            delete_local_leftovers(settings, found)
            assert (root / names[0]).is_dir()
        leave(root, names[0])
        delete_local_leftovers(settings, found)
    assert names_in(root) == {kept, f"{kept}.lock", names[3], f"{names[3]}.lock"}
    assert names_in(settings.sources_folder) == {busy.name, fetched.name}
