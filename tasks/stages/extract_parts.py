"""Extraction spread over a cluster: each task computes some of a model's shards; the stage itself then finds all."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from fusion_core.models.identity import ResolvedModel
from tasks.addresses import ResolvedFusion
from tasks.settings import Settings
from tasks.stages.device_slots import device_slot
from tasks.stages.extract import distribution_names, extract, extract_missing
from tasks.stages.fan_out import fan_out, is_cluster
from tasks.stages.stage_task import stage_task
from tasks.store.publication import Artifact, Publication, find_artifact
from tasks.store.work_folders import locked_folder, remove_leftovers, work_name
from tasks.store.workplace import open_workplace


class Part(BaseModel):
    """Some of a model's shards, in the store but not yet listed by a manifest."""

    model_config = ConfigDict(frozen=True)

    address: str
    reused: bool


def extract_models(
    fusion: ResolvedFusion, models: Sequence[ResolvedModel], dialogues: Artifact, run: str | None
) -> dict[str, Artifact]:
    """Publish the distributions of every model; on a cluster each one's shards are shared out."""
    if is_cluster():
        workers = Settings().task_workers
        parts = min(workers, len(distribution_names(dialogues)))
        calls = {
            (model.name, part): (fusion, model, dialogues, part, parts) for model in models for part in range(parts)
        }
        fan_out(extract_part, calls)
    return fan_out(extract, {model.name: (fusion, model, dialogues, run) for model in models})


def extract_some_shards(
    fusion: ResolvedFusion, model: ResolvedModel, dialogues: Artifact, part: int, parts: int
) -> Part:
    """Compute every ``parts``-th shard of a model, from number ``part`` on, unless the store holds it."""
    workplace = open_workplace()
    address = fusion.distributions(model)
    work = workplace.settings.work_folder
    if find_artifact(workplace.store, address) is not None:
        # On a cluster a machine may have no other occasion to remove what a part that was killed there has left.
        remove_leftovers(work, address)
        return Part(address=address, reused=True)
    with locked_folder(work, work_name(address, part)) as folder, device_slot(workplace.settings):
        publication = Publication(workplace.store, address)
        extract_missing(fusion, model, dialogues, publication, folder, distribution_names(dialogues)[part::parts])
    return Part(address=address, reused=False)


extract_part = stage_task(
    extract_some_shards,
    "extract {model.name} part {part}",
    lambda fusion, model, *_, **__: fusion.distributions(model),
)
