"""MLflow's tables in an SQLite file, made whole or not at all: MLflow itself goes on with no part of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from sqlalchemy.engine import make_url

from tasks.settings import Settings
from tasks.store.owners import is_abandoned, temporary_name


def make_embedded_database(settings: Settings) -> None:
    """Make MLflow's database where the tracking address is an SQLite file that is not there yet.

    The tables are made in a folder beside it and the file is then moved to its place, by one process at a time; what
    a process of this machine left that was killed meanwhile is removed.

    Raises
    ------
    OSError, MlflowException, SQLAlchemyError
        If the folder cannot be written to.
    """
    address = make_url(settings.tracking_uri) if settings.tracking_uri.startswith("sqlite:") else None
    if address is None or address.database in (None, "", ":memory:"):
        return
    path = Path(str(address.database)).resolve()
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in path.parent.iterdir():
            if is_abandoned(left.name):
                shutil.rmtree(left, ignore_errors=True)
        if not path.exists():
            _make(path, settings.tracking_artifacts)
    finally:
        os.close(descriptor)


def _make(path: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = path.with_name(temporary_name())
    folder.mkdir()
    try:
        store = SqlAlchemyStore(f"sqlite:///{folder / path.name}", artifacts.as_uri())
        store.engine.dispose()
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
