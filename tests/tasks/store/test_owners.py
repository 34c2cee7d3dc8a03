"""What a killed process left is known by its name, and what is in use is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.store.folder import FolderStore
from tasks.store.lock import StoreLock, abandoned_locks
from tasks.store.owners import is_abandoned, process_lives, start_of_this_process, temporary_name
from tasks.store.workplace import Stage, Workplace, compute_once, open_workplace

LEAVE = """
import os, signal, sys
from pathlib import Path
from tasks.store.folder import FolderStore
from tasks.store.owners import temporary_name
from tasks.store.lock import StoreLock
store = FolderStore(Path(sys.argv[1]))
(store.root / ".partial" / temporary_name()).write_text("half")
assert StoreLock(store, "a").try_acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_what_a_dead_process_of_this_machine_named_is_abandoned(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    mine = store.root / ".partial" / temporary_name()
    elsewhere = store.root / ".partial" / f"{'0' * 12}-1-1-{'0' * 32}"
    other = store.root / ".partial" / "0123"
    for path in (mine, elsewhere, other):
        path.write_text("half")
    done = subprocess.run([sys.executable, "-c", LEAVE, str(store.root)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    (left,) = {path for path in (store.root / ".partial").iterdir()} - {mine, elsewhere, other}
    assert is_abandoned(left.name) and not is_abandoned(mine.name)
    assert abandoned_locks(store) == ["a"]
    store.remove_abandoned()
    assert set((store.root / ".partial").iterdir()) == {mine, elsewhere, other}
    lock = StoreLock(store, "a")
    assert lock.try_acquire()
    lock.release()
    assert abandoned_locks(store) == [] and list(store.list("locks/")) == []


def test_another_process_with_the_same_number_is_another_process() -> None:
    import os

    assert process_lives(os.getpid(), start_of_this_process())
    assert not process_lives(os.getpid(), start_of_this_process() - 60)
    assert not process_lives(10**9 - 1, 0.0)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    return open_workplace()


def test_the_work_folder_of_a_stage_that_is_whole_goes(workplace: Workplace, tmp_path: Path) -> None:
    stage = Stage("merge", "x", "merged/a/b", uses_device=False)
    compute_once(workplace, stage, lambda publication, folder, run: {"is_there": folder.is_dir()})
    assert list((tmp_path / "work").iterdir()) == []
    # As a process leaves it that is killed after its manifest.
    (tmp_path / "work" / "merged--a--b").mkdir()
    (tmp_path / "work" / "merged--a--b" / "large").write_text("x")
    (tmp_path / "work" / "merged--a--b.lock").touch()
    assert compute_once(workplace, stage, lambda *_: pytest.fail("it is whole")).reused
    assert list((tmp_path / "work").iterdir()) == []
