"""Where stages work: settings, object store, local cache, and a locked folder for each address under way."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.devices import release_memory
from tasks.runs.inputs import log_datasets
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
from tasks.stages.device_slots import device_slot
from tasks.store.interface import Store
from tasks.store.local_cache import LocalCache, open_cache
from tasks.store.local_files import disk_errors, full_disk_errors
from tasks.store.open_store import open_store
from tasks.store.publication import Artifact, Publication, fetch_folder, find_artifact

# On a fusion's run: which run computed what this one found.
COMPUTED_BY = "fuseline.computed_by."


@dataclass(frozen=True)
class Workplace:
    """Everything of the place, and nothing of the experiment, that a stage needs."""

    settings: Settings
    store: Store
    cache: LocalCache

    def tracking(self, experiment: str) -> Tracking:
        """Connect to an MLflow experiment."""
        return Tracking(self.settings, experiment)

    def folder(self, address: str) -> Path:
        """Return a local, verified folder with every object of an artifact."""
        return fetch_folder(self.store, self.cache, address)


def open_workplace() -> Workplace:
    """Open store and cache as the environment says."""
    settings = Settings()
    return Workplace(settings, open_store(settings), open_cache(settings))


@dataclass(frozen=True)
class Stage:
    """One stage of one fusion: what it is called, where its result goes, and who is told."""

    kind: str
    subject: str
    address: str
    inputs: tuple[str, ...] = ()
    fusion_run: str | None = None
    experiment: str = "fuseline"


# Computes a stage: gets the open publication, a folder to work in and the MLflow run, returns the manifest's metadata.
Compute = Callable[[Publication, Path, str | None], dict[str, Any]]


def compute_once(workplace: Workplace, stage: Stage, compute: Compute) -> Artifact:
    """Return a stage's artifact, computing it only if the store does not hold it whole.

    A process that finds the address locked by another one on this machine waits, then takes what that one published.
    The work folder survives a failure, so that the next try resumes from it, and is removed on success.
    """
    tracking = workplace.tracking(stage.experiment)
    work = workplace.settings.home / "work"
    found = find_artifact(workplace.store, stage.address)
    if found is not None:
        _remove_leftovers(work, stage.address)
        return _linked(tracking, stage, found)
    workplace.store.remove_abandoned()
    with _locked_folder(work, stage.address) as folder:
        found = find_artifact(workplace.store, stage.address)
        if found is not None:
            _linked(tracking, stage, found)
        else:
            with (
                device_slot(workplace.settings, stage.kind),
                tracking.stage_run(stage.fusion_run, f"{stage.kind} {stage.subject}", stage.kind, stage.address) as run,
            ):
                if run is not None:
                    read = (find_artifact(workplace.store, address) for address in stage.inputs)
                    log_datasets(tracking, run, workplace.store, [made for made in read if made is not None])
                publication = Publication(workplace.store, stage.address)
                started = time.monotonic()
                with full_disk_errors(f"The stage '{stage.kind}' of {stage.subject}", folder):
                    metadata = compute(publication, folder, run)
                found = publication.finish(
                    stage=stage.kind,
                    metadata={
                        **metadata,
                        "subject": stage.subject,
                        "inputs": list(stage.inputs),
                        "seconds": round(time.monotonic() - started, 3),
                        "mlflow_run": run,
                    },
                )
                tracking.log(run, metrics={"bytes": found.bytes, "objects": found.objects})
    release_memory()
    return found


def _linked(tracking: Tracking, stage: Stage, found: Artifact) -> Artifact:
    """Tell the fusion's run which run computed a result that it found."""
    tracking.log(stage.fusion_run, tags={f"{COMPUTED_BY}{stage.kind}.{stage.subject}": computed_by(found)})
    return found


def computed_by(artifact: Artifact) -> str:
    """Return the MLflow run that computed a result, or that it was made without one."""
    return str(artifact.metadata.get("mlflow_run") or "a command without a run")


@contextmanager
def _locked_folder(root: Path, address: str) -> Iterator[Path]:
    """Yield a stage's work folder, this process's alone; it is removed when the block ends without an error."""
    folder, lock = _work_paths(root, address)
    with ExitStack() as stack:
        with disk_errors(f"Making the work folder {folder}"):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(lock))
            folder.mkdir(exist_ok=True)
        yield folder
        _remove(folder, lock)


def _remove_leftovers(root: Path, address: str) -> None:
    """Remove the work folder of a stage that is whole, where its process was killed before it could."""
    folder, lock = _work_paths(root, address)
    if not lock.exists():
        return
    with disk_errors(f"Removing the work folder {folder}"), lock.open("w") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder, lock)


def _work_paths(root: Path, address: str) -> tuple[Path, Path]:
    name = address.replace("/", "--")
    return root / name, root / f"{name}.lock"


def _remove(folder: Path, lock: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # While it is still locked: whoever waits for it notices that it is gone.
    lock.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it before us may have removed the file that we were waiting for.
            if _is_at(path, os.fstat(file.fileno()).st_ino):
                yield
                return


def _is_at(path: Path, number: int) -> bool:
    try:
        return path.stat().st_ino == number
    except FileNotFoundError:
        return False
