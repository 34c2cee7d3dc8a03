"""Stage: data files to dialogues, split into a training and a held-out part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fusion_core.dialogues import Dialogue, PreparationReport, load_dialogues, prepare_dialogues
from tasks.addresses import ResolvedFusion
from tasks.runs.inputs import log_datasets
from tasks.stages.stage_task import stage_task
from tasks.store.publication import Artifact, Publication
from tasks.store.workplace import Stage, Workplace, compute_once, open_workplace


class PreparedDialogues(BaseModel):
    """Both parts of the prepared dialogues."""

    model_config = ConfigDict(frozen=True)

    train: Artifact
    held_out: Artifact

    @property
    def reused(self) -> bool:
        """Whether the store held both parts."""
        return self.train.reused and self.held_out.reused

    @property
    def address(self) -> str:
        """Address of the training part, beside which the held-out part lies."""
        return self.train.address


def prepare_dataset(fusion: ResolvedFusion, fusion_run: str | None = None) -> PreparedDialogues:
    """Read the recipe's data files, set malformed dialogues aside, and publish the training and held-out dialogues."""
    workplace = open_workplace()

    def stage(split: str) -> Stage:
        return Stage(
            "prepare",
            split,
            fusion.dialogues(split),
            fusion_run=fusion_run,
            experiment=fusion.config.registry.experiment,
            uses_device=False,
        )

    def compute_held_out(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        return _publish(
            prepare_dialogues(fusion.files, fusion.config.dialogues, folder / "dialogues"),
            publication,
            folder / "dialogues",
            "held_out",
        )

    def compute_train(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        report = prepare_dialogues(fusion.files, fusion.config.dialogues, folder / "dialogues")
        metadata = _publish(report, publication, folder / "dialogues", "train")
        publication.add("quarantine.jsonl", folder / "dialogues" / "quarantine.jsonl")
        tracking = workplace.tracking(fusion.config.registry.experiment)
        tracking.log(run, metrics={"quarantined": report.quarantined, "dialogues": metadata["dialogues"]})
        return metadata

    held_out = compute_once(workplace, stage("held_out"), compute_held_out)
    train = compute_once(workplace, stage("train"), compute_train)
    log_datasets(workplace.tracking(fusion.config.registry.experiment), fusion_run, workplace.store, [train, held_out])
    return PreparedDialogues(train=train, held_out=held_out)


prepare = stage_task(prepare_dataset, "prepare dialogues", lambda fusion, *_, **__: fusion.dialogues("train"))


def shard_names(artifact: Artifact) -> list[str]:
    """Names of the Parquet shards of an artifact, in order."""
    names: Any = artifact.metadata["shards"]
    return sorted(names)


def read_split(workplace: Workplace, artifact: Artifact) -> list[Dialogue]:
    """Read all dialogues of a split."""
    folder = workplace.folder(artifact.address)
    return [dialogue for name in shard_names(artifact) for dialogue in load_dialogues(folder / name)]


def _publish(report: PreparationReport, publication: Publication, folder: Path, split: str) -> dict[str, Any]:
    paths = sorted((folder / split).glob("*.parquet"))
    for path in paths:
        publication.add(path.name, path)
    counts = report.train if split == "train" else report.held_out
    return {
        "shards": [path.name for path in paths],
        "dialogues": sum(counts.values()),
        "domains": dict(counts),
        "quarantined": report.quarantined,
    }
