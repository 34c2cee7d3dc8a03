"""Where the stack keeps its data, logs, credentials and the record of what it started."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusion_core.errors import FusionError
from tasks.store.local_files import disk_errors


@dataclass(frozen=True)
class StackFolder:
    """One folder that survives a restart; only its owner may read it."""

    root: Path

    @property
    def credentials(self) -> Path:
        """Generated passwords and keys."""
        return self.root / "credentials.json"

    @property
    def ports(self) -> Path:
        """Ports chosen at the first start."""
        return self.root / "ports.json"

    @property
    def environment(self) -> Path:
        """Shell exports for commands that are to use the stack."""
        return self.root / "environment"

    @property
    def lock(self) -> Path:
        """Held by the one command that starts or stops."""
        return self.root / "lock"

    def data(self, service: str) -> Path:
        """Return the folder of a service's data."""
        return self.root / service

    def log(self, service: str) -> Path:
        """Return the file that takes what a service prints."""
        return self.root / "logs" / f"{service}.log"

    def record(self, service: str) -> Path:
        """Return the file that says which process a service is."""
        return self.root / "processes" / f"{service}.json"

    def make_data(self, service: str) -> Path | None:
        """Make the folder of a server's data, anew unless the server answered once (see `answered`).

        A server that is killed while it makes its tables does not start on them again. They are set aside, for it may
        have served somebody without our seeing it answer; returns where they lie now, None when there was nothing.
        """
        data, first_start, aside = self.data(service), self._first_start(service), None
        with disk_errors(f"Making {data}"):
            if first_start.exists() and data.is_dir() and any(data.iterdir()):
                aside = self.root / f"{service}.never-answered-{time.strftime('%Y%m%d-%H%M%S')}"
                data.rename(aside)
            if not data.is_dir():
                first_start.touch()
                data.mkdir()
        return aside

    def answered(self, service: str) -> None:
        """Note that a server answers: what it keeps is whole, and stays from now on."""
        with disk_errors(f"Removing {self._first_start(service)}"):
            self._first_start(service).unlink(missing_ok=True)

    def _first_start(self, service: str) -> Path:
        return self.root / f"{service}.first-start"

    def make(self) -> None:
        """Create the folders, closed to other users of the machine."""
        with disk_errors(f"Making the stack's folder {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
            for name in ("logs", "processes"):
                (self.root / name).mkdir(exist_ok=True)


@contextmanager
def only_command(folder: StackFolder) -> Iterator[None]:
    """Hold the stack against a second `up` or `down`, which would start or stop half of what this one does.

    Raises
    ------
    FusionError
        If another one is at work.
    """
    with disk_errors(f"Locking {folder.lock}"):
        file = folder.lock.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FusionError(
                f"Another `fuseline up` or `fuseline down` is at work on {folder.root}; wait until it ends, then run "
                "this again."
            ) from error
        yield


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(f"Writing {path}"):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
