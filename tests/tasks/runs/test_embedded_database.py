"""MLflow's embedded database comes whole: after a kill the next process makes it, of several at once only one does."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.runs.embedded_database import make_embedded_database
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
from tasks.store.owners import is_abandoned

# Killed as soon as MLflow has made some of its tables and not yet the last.
DIE = """
import os, signal
import mlflow.store.db.utils as utils
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
Tracking(Settings(), "fuseline").experiment_id
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_killed_process_leaves_no_half_of_it(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIE], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    (left,) = home.iterdir()
    assert is_abandoned(left.name) and (left / "mlflow.db").stat().st_size > 0
    settings = Settings()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make_embedded_database, [settings] * 4))
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]
    tracking = Tracking(settings, "fuseline")
    run = tracking.start_run("one", {})
    tracking.end_run(run, "FINISHED")
    assert tracking.client.get_run(run).info.status == "FINISHED"


def test_a_database_that_is_there_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"somebody's")
    make_embedded_database(Settings())
    assert (home / "mlflow.db").read_bytes() == b"somebody's"
    # An address of one's own may be an SQLite file too; a server makes its own tables.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'new' / 'own.db'}")
    make_embedded_database(Settings())
    assert os.listdir(tmp_path / "new") == ["own.db"]
    with sqlite3.connect(tmp_path / "new" / "own.db") as database:
        assert database.execute("SELECT COUNT(*) FROM alembic_version").fetchone() == (1,)
    database.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    make_embedded_database(Settings())
    assert {path.name for path in tmp_path.iterdir()} == {"home", "new"}
