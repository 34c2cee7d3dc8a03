"""Marks in place of secrets, and the search for them in files, texts and command lines."""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Every variable from which this product, or a library on its behalf, takes something secret, and whose it is.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "S3",
    "AWS_SECRET_ACCESS_KEY": "S3",
    "AWS_SESSION_TOKEN": "S3",
    "FUSELINE_WEBHOOK_SECRET": "the receiver",
    "HF_OIDC_ID_TOKEN": "the model hub",
    "HF_TOKEN": "the model hub",
    "HUGGING_FACE_HUB_TOKEN": "the model hub",
    "MLFLOW_TRACKING_PASSWORD": "MLflow",
    "MLFLOW_TRACKING_TOKEN": "MLflow",
    "MLFLOW_TRACKING_USERNAME": "MLflow",
    "OPENAI_API_KEY": "judges and endpoints that generate, unless the recipe names another variable",
    "PREFECT_API_AUTH_STRING": "Prefect",
    "PREFECT_API_KEY": "Prefect",
}
# What only the servers of the stack and of the containers are started with.
SERVERS_OWN = {
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    "POSTGRES_PASSWORD_FILE",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
}


def make_canaries(names: Iterable[str]) -> dict[str, str]:
    """Return a mark for each name, which nothing else can contain by chance."""
    return {name: f"canary{secrets.token_hex(12)}" for name in names}


def shapes(mark: str) -> list[bytes]:
    """Return a secret as it is, and what of it stays the same in base64 wherever in a text it stands."""
    raw = mark.encode()
    encoded = [base64.b64encode(b"x" * offset + raw)[4 if offset else 0 : -4] for offset in range(3)]
    return [raw, *encoded]


def found_in(content: bytes, canaries: Mapping[str, str]) -> list[str]:
    """Return the names of the canaries that a content shows."""
    return [name for name, mark in canaries.items() if any(shape in content for shape in shapes(mark))]


def found_in_files(folder: Path, canaries: Mapping[str, str], allowed: Iterable[str] = ()) -> list[str]:
    """Return ``path: name`` for every file below a folder whose name or content shows a canary.

    Parameters
    ----------
    folder : Path
    canaries : mapping
        Marks by name.
    allowed : iterable of str
        Files, by their paths below the folder, that are there to hold secrets.
    """
    kept = set(allowed)
    shown = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in kept or not path.is_file():
            continue
        shown += [f"{name}: {canary}" for canary in found_in(name.encode() + b"\n" + path.read_bytes(), canaries)]
    return shown


@dataclass
class CommandLines:
    """What processes of this machine were started with, as far as it was seen."""

    seen: set[bytes] = field(default_factory=set)

    def look(self) -> None:
        """Note the command line of every process there is now."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.seen.add(path.read_bytes())
            except OSError:
                continue


@contextmanager
def watched_command_lines(interval_seconds: float = 0.05) -> Iterator[CommandLines]:
    """Look at all processes again and again until the block ends."""
    lines, over = CommandLines(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            lines.look()
            time.sleep(interval_seconds)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lines
    finally:
        over.set()
        watcher.join()
