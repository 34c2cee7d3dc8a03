"""A process that publishes three shards, for tests that kill it or let it race: run with one JSON argument."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tasks.store import folder as folder_store
from tasks.store.folder import FolderStore
from tasks.store.interface import Store
from tasks.store.publication import Publication

REPOSITORY = Path(__file__).resolve().parents[2]
SHARDS = tuple(f"shard-{number:05}.parquet" for number in range(3))
ADDRESS = "distributions/model/data/spec"


def shard_bytes(name: str, seed: int = 0) -> bytes:
    """Return 200 kB that depend on shard and seed."""
    return hashlib.sha256(f"{name} {seed}".encode()).digest() * 6250


def worker_arguments(store: Store, **options: Any) -> str:
    """Return the JSON argument for a worker on `store`; options: seed, kill, wait, endpoint."""
    if isinstance(store, FolderStore):
        place = {"folder": str(store.root)}
    else:
        place = {"bucket": store.bucket, "prefix": store.prefix, "endpoint": store._endpoint_url}  # type: ignore[attr-defined]
    return json.dumps(place | options)


def start_worker(arguments: str) -> subprocess.Popen[str]:
    """Start a worker; its last line of output is the artifact as JSON. With `wait` it says ready and awaits a line."""
    command = [sys.executable, "-m", "tests.tasks.publishing_worker", arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def written(folder: Path, name: str, data: bytes) -> Path:
    """Write a file below a folder and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def main(options: dict[str, Any]) -> None:
    """Publish, or die trying."""
    store: Store
    if "folder" in options:
        store = FolderStore(Path(options["folder"]))
    else:
        from tasks.store.s3 import S3Store

        store = S3Store(options["bucket"], options["prefix"], endpoint_url=options["endpoint"])
    if "kill" in options:
        die_at(*options["kill"])
    with tempfile.TemporaryDirectory() as scratch:
        publication = Publication(store, ADDRESS)
        if options.get("wait"):
            print("ready", flush=True)
            sys.stdin.readline()
        for name in SHARDS:
            if publication.finished(name):
                continue
            publication.add(name, written(Path(scratch), name, shard_bytes(name, options.get("seed", 0))))
        artifact = publication.finish(stage="extract", metadata={"inputs": [], "seed": options.get("seed", 0)})
        print(artifact.model_dump_json(), flush=True)


def die_at(moment: str, name: str) -> None:
    """Make this process kill itself while it places the object `name` in a folder store."""
    place = folder_store._with_parents
    copy = folder_store.copy_and_hash

    def placing(action: Any, source: Path, target: Path) -> None:
        if moment == "before" and target.name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        place(action, source, target)
        if moment == "after" and target.name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    def copying(source: Any, target: Any = None) -> str:
        if target is not None and Path(source.name).name == name:
            target.write(source.read(70_000))
            target.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return copy(source, target)

    folder_store._with_parents = placing
    if moment == "amid":
        folder_store.copy_and_hash = copying


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
