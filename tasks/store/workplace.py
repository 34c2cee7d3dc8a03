"""Where stages work: settings, object store, local cache, and what computes a stage no more than once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion_core.devices import release_memory
from tasks.runs.inputs import log_datasets
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
from tasks.stages.device_slots import device_slot
from tasks.store.interface import Store
from tasks.store.local_cache import LocalCache, open_cache
from tasks.store.local_files import full_disk_errors
from tasks.store.open_store import open_store
from tasks.store.publication import Artifact, Publication, fetch_folder, find_artifact
from tasks.store.work_folders import locked_folder, remove_leftovers, work_name

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
    """One stage of one fusion: what it is called, where its result goes, who is told, and whether it uses a device."""

    kind: str
    subject: str
    address: str
    inputs: tuple[str, ...] = ()
    fusion_run: str | None = None
    experiment: str = "fuseline"
    uses_device: bool = field(kw_only=True)


# Computes a stage: gets the open publication, a folder to work in and the MLflow run, returns the manifest's metadata.
Compute = Callable[[Publication, Path, str | None], dict[str, Any]]


def compute_once(workplace: Workplace, stage: Stage, compute: Compute) -> Artifact:
    """Return a stage's artifact, computing it only if the store does not hold it whole.

    A process that finds the address locked by another one on this machine waits, then takes what that one published.
    The work folder survives a failure, so that the next try resumes from it, and is removed on success.
    """
    tracking = workplace.tracking(stage.experiment)
    work = workplace.settings.work_folder
    found = find_artifact(workplace.store, stage.address)
    if found is not None:
        remove_leftovers(work, stage.address)
        return _linked(tracking, stage, found)
    workplace.store.remove_abandoned()
    with locked_folder(work, work_name(stage.address)) as folder:
        found = find_artifact(workplace.store, stage.address)
        if found is not None:
            _linked(tracking, stage, found)
        else:
            with (
                device_slot(workplace.settings) if stage.uses_device else nullcontext(),
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
    remove_leftovers(work, stage.address)
    release_memory()
    return found


def _linked(tracking: Tracking, stage: Stage, found: Artifact) -> Artifact:
    """Tell the fusion's run which run computed a result that it found."""
    tracking.log(stage.fusion_run, tags={f"{COMPUTED_BY}{stage.kind}.{stage.subject}": computed_by(found)})
    return found


def computed_by(artifact: Artifact) -> str:
    """Return the MLflow run that computed a result, or that it was made without one."""
    return str(artifact.metadata.get("mlflow_run") or "a command without a run")
