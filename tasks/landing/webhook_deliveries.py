"""Which deliveries of a webhook were taken already, kept on disk so that a restart forgets none."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fusion_core.errors import StoreError, first_line
from tasks.store.local_files import disk_errors


class Deliveries:
    """Ids of deliveries in a small database, each taken once by however many receivers share it.

    Parameters
    ----------
    path : Path
        The database; made with its folder.
    keep_seconds : float
        How long an id is remembered; an older delivery is refused by its time anyway.
    """

    def __init__(self, path: Path, keep_seconds: float) -> None:
        self._path = path
        self._keep = keep_seconds
        with disk_errors(f"Making {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._database() as database:
            database.execute("CREATE TABLE IF NOT EXISTS deliveries (id TEXT PRIMARY KEY, at REAL NOT NULL)")

    def take(self, delivery: str) -> bool:
        """Remember a delivery; False when it was taken before."""
        now = time.time()
        with self._database() as database:
            database.execute("DELETE FROM deliveries WHERE at < ?", (now - self._keep,))
            added = database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (delivery, now))
            return added.rowcount == 1

    def give_back(self, delivery: str) -> None:
        """Forget a delivery that could not be handled, so that its sender's next attempt is."""
        with self._database() as database:
            database.execute("DELETE FROM deliveries WHERE id = ?", (delivery,))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise StoreError(
                f"The list of deliveries {self._path} cannot be used ({first_line(error)}); free the disk, or delete "
                "the file and start the receiver again."
            ) from error
