"""Rows of a run's summary, read out of the manifests of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion_core.alignment.coverage import Coverage
from fusion_core.config import ModelConfig
from fusion_core.models.card import read_license
from fusion_core.models.identity import ResolvedModel, count_parameters
from fusion_core.models.loading import load_tokenizer
from fusion_core.report.run_summary import CoverageRow, DataRow, MergeSummary, ModelRow, Role, StageRow, TrainingCurve
from tasks.addresses import CONTROL, FUSED, ResolvedFusion
from tasks.stages.judged import JudgedModel
from tasks.stages.prepare import PreparedDialogues
from tasks.store.manifest import metadata_of
from tasks.store.publication import Artifact


def stage_rows(
    dialogues: PreparedDialogues,
    distributions: Mapping[str, Artifact],
    fused: list[Artifact],
    checkpoints: Mapping[str, Artifact],
    scores: Mapping[str, Artifact],
    benchmarks: Mapping[str, Sequence[Artifact]],
    judged: Mapping[str, JudgedModel],
) -> tuple[StageRow, ...]:
    """List every unit of work in the order of the method, with whether it was found or computed."""
    merged = checkpoints[FUSED]
    trained = [made for made in checkpoints.values() if made.address != merged.address]
    parts = [
        ("prepare", [dialogues.train, dialogues.held_out]),
        ("extract", list(distributions.values())),
        ("fuse", fused),
        ("train", trained),
        ("merge" if "method" in merged.metadata else "train", [merged]),
        ("evaluate", [*scores.values(), *(made for several in benchmarks.values() for made in several)]),
        ("judge", [made for one in judged.values() for made in one.artifacts]),
    ]
    return tuple(
        StageRow(
            stage=stage,
            subject=metadata_of(made)["subject"],
            status="cached" if made.reused else "computed",
            seconds=0.0 if made.reused else metadata_of(made)["seconds"],
            bytes=made.bytes,
            positions=_positions(made),
            address=made.address,
            seconds_when_computed=metadata_of(made)["seconds"],
            # Each process of a stage works on a device of its own.
            devices=metadata_of(made).get("processes") or 1,
        )
        for stage, artifacts in parts
        for made in artifacts
    )


def _positions(made: Artifact) -> int | None:
    # Training counts the positions of all its passes over the data.
    said = metadata_of(made)
    count: int | None = said.get("positions", said.get("training", {}).get("positions"))
    return count


def model_rows(fusion: ResolvedFusion, checkpoints: Mapping[str, Artifact]) -> tuple[ModelRow, ...]:
    """Describe the recipe's models and the checkpoints the run made."""
    config = fusion.config
    entries = {model.name: model for model in (config.pivot, *config.sources)}
    rows = [
        _given_model(model, entries[model.name], "pivot" if model is fusion.pivot else "source")
        for model in (fusion.pivot, *fusion.sources)
    ]
    pivot = rows[0]
    roles: dict[str, Role] = {FUSED: "fused", CONTROL: "control"}
    notes = {
        FUSED: "merge of the targets" if config.strategy == "pairwise" else "one target on all sources",
        CONTROL: "pivot fine-tuned on the same dialogues with lambda = 1",
    }
    for name, made in checkpoints.items():
        rows.append(
            pivot.model_copy(
                update={
                    "name": name,
                    "role": roles.get(name, "target"),
                    "digest": made.digest,
                    "origin": made.address,
                    "revision": None,
                    "note": notes.get(name, f"pivot trained on {name.removeprefix('target-')}'s knowledge"),
                }
            )
        )
    return tuple(rows)


def data_rows(fusion: ResolvedFusion, dialogues: PreparedDialogues) -> tuple[DataRow, ...]:
    """Count the dialogues of each domain."""
    train, held_out = (metadata_of(part)["domains"] for part in (dialogues.train, dialogues.held_out))
    return tuple(
        DataRow(
            domain=domain,
            train_dialogues=train.get(domain, 0),
            held_out_dialogues=held_out.get(domain, 0),
            files=tuple(
                file.hub or Path(str(file.path)).name for file in fusion.config.dialogues.files if file.domain == domain
            ),
        )
        for domain in sorted({*train, *held_out})
    )


def coverage_rows(fused: Artifact, names: Sequence[str]) -> list[CoverageRow]:
    """Read how far each source reached out of a manifest; ``names`` is what this run calls them, in their order."""
    coverage = Coverage.from_json(dict(zip(names, metadata_of(fused)["coverage"], strict=True)))
    return [
        CoverageRow(
            source=source,
            domain=domain,
            positions=counts.positions,
            at_boundary=counts.boundary,
            conditioned=counts.conditioned,
            fallen_back=counts.fallen_back,
            mass_kept=counts.mass_kept,
            source_won=counts.positions_won,
        )
        for source, domains in coverage.sources.items()
        for domain, counts in sorted(domains.items())
    ]


def training_curve(name: str, made: Artifact) -> TrainingCurve:
    """Read the loss curve out of a checkpoint's manifest."""
    lm_weight = metadata_of(made)["lm_weight"]
    windows = metadata_of(made)["training"]["windows"]
    return TrainingCurve(
        target=name,
        lm_weight=lm_weight,
        steps=tuple(window["step"] for window in windows),
        lm_loss=tuple(window["lm_loss"] for window in windows),
        fusion_loss=tuple(None if lm_weight == 1.0 else window["fusion_loss"] for window in windows),
        learning_rate=tuple(window["learning_rate"] for window in windows),
    )


def _given_model(model: ResolvedModel, entry: ModelConfig, role: Role) -> ModelRow:
    return ModelRow(
        name=model.name,
        role=role,
        parameters=count_parameters(model.folder),
        tokenizer_size=len(load_tokenizer(model)),
        tokenizer_digest=model.tokenizer_digest,
        digest=model.digest,
        origin=entry.hub or model.folder.name,
        revision=model.revision,
        license=read_license(model.folder),
        note=entry.note,
    )


def merge_summary(merged: Artifact, names: Sequence[str]) -> MergeSummary | None:
    """Read the merge weights out of the fused model's manifest; None where nothing was merged."""
    if "weights" not in merged.metadata:
        return None
    return MergeSummary.model_validate(
        {"targets": tuple(names)} | {key: merged.metadata[key] for key in ("method", "granularity", "weights")}
    )
