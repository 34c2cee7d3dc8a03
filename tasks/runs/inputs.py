"""What a run read, as MLflow datasets with their digests."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mlflow.entities import Dataset, DatasetInput, InputTag

from fusion_core.models.identity import ResolvedModel
from tasks.addresses import digest_of
from tasks.runs.tracking import Tracking, plain_errors
from tasks.store.interface import Store
from tasks.store.publication import Artifact

CONTEXT = "mlflow.data.context"
# How MLflow's pages call what a stage published; a checkpoint is a model, not a dataset.
NAMES = {"prepare": "dialogues {}", "extract": "distributions of {}", "fuse": "fused distributions of {}"}
CONTEXTS = {"train": "training", "held_out": "evaluation"}
COUNTS = ("dialogues", "positions", "domains", "refused", "quarantined", "response_bytes")
LONGEST_PROFILE = 60_000


def log_datasets(tracking: Tracking, run_id: str | None, store: Store, artifacts: Iterable[Artifact]) -> None:
    """Log what a run reads; an artifact that is no data is left out."""
    if run_id is None:
        return
    inputs = [_input(store, artifact) for artifact in artifacts if _kind(artifact) in NAMES]
    if inputs:
        with plain_errors(tracking.settings):
            tracking.client.log_inputs(run_id, datasets=inputs)


def _kind(artifact: Artifact) -> str:
    return {"datasets": "prepare", "distributions": "extract", "fused": "fuse"}.get(artifact.address.split("/")[0], "")


def _input(store: Store, artifact: Artifact) -> DatasetInput:
    subject = str(artifact.metadata.get("subject", ""))
    counts = {name: artifact.metadata[name] for name in COUNTS if name in artifact.metadata}
    dataset = Dataset(
        name=NAMES[_kind(artifact)].format(subject),
        # An address is a digest of everything that decides the bytes below it.
        digest=digest_of(artifact.address),
        source_type="object store",
        source=json.dumps({"uri": store.url(artifact.address)}),
        profile=json.dumps({**counts, "bytes": artifact.bytes, "objects": artifact.objects})[:LONGEST_PROFILE],
    )
    return DatasetInput(dataset, tags=[InputTag(CONTEXT, CONTEXTS.get(subject, "training"))])


def model_parameters(model: ResolvedModel) -> dict[str, str]:
    """Say which model a stage read, as its run's parameters."""
    named = {"model": model.name, "digest": model.digest, "revision": model.revision, "dtype": model.dtype}
    return {f"model.{key}" if key != "model" else key: value for key, value in named.items() if value is not None}
