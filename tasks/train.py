"""Stage: a target, trained from the pivot on the fused distributions of one pair."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion_core.model_folders import write_chat_template
from fusion_core.models import ResolvedModel
from fusion_core.progress import show_progress
from fusion_core.training import TrainingWindow, train_target
from tasks.addresses import CONTROL, ResolvedFusion
from tasks.prepare import shard_names
from tasks.publication import Artifact, Publication
from tasks.stage_task import stage_task
from tasks.workplace import Stage, compute_once, open_workplace


def train_on_fused(
    fusion: ResolvedFusion,
    name: str,
    sources: tuple[ResolvedModel, ...],
    fused: Artifact,
    fusion_run: str | None = None,
    lm_weight: float | None = None,
) -> Artifact:
    """Publish the checkpoint of one target; ``lm_weight=1.0`` makes it the plain-SFT control on the same dialogues."""
    workplace = open_workplace()
    config = fusion.config
    address = fusion.target(sources, lm_weight=lm_weight)
    stage = Stage("train", name, address, (fused.address,), fusion_run, config.registry.experiment)

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        tracking = workplace.tracking(config.registry.experiment)
        tracking.log(
            run,
            parameters={**config.training.model_dump(), "lm_weight": _weight(fusion, lm_weight), "target": name},
        )

        def on_window(window: TrainingWindow) -> None:
            now = int(time.time() * 1000)
            points = [(key, value, now, window.step) for key, value in window.as_metrics().items()]
            tracking.log_points(run, points)

        fused_folder = workplace.folder(fused.address)
        output = folder / "target"
        with show_progress(f"train {name}", "steps") as progress:
            report = train_target(
                fusion.pivot.folder,
                [fused_folder / shard for shard in shard_names(fused)],
                output,
                config.training,
                lm_weight=lm_weight,
                checkpoint_folder=folder / "checkpoints",
                progress=progress,
                on_window=on_window,
            )
        write_chat_template(output, fusion.pivot.chat_template)
        publication.add_folder(output)
        return {
            "target": name,
            "lm_weight": _weight(fusion, lm_weight),
            "training": asdict(report) | {"windows": [asdict(window) for window in report.windows]},
        }

    return compute_once(workplace, stage, compute)


train = stage_task(
    train_on_fused,
    "train {name}",
    lambda fusion, name, sources, *_, lm_weight=None, **__: fusion.target(sources, lm_weight=lm_weight),
)


def train_control(
    fusion: ResolvedFusion, fused: Mapping[tuple[ResolvedModel, ...], Artifact], fusion_run: str | None = None
) -> Artifact:
    """Train the plain-SFT control: the pivot on the same dialogues, steps and seed, with lambda = 1."""
    group = fusion.groups[0]
    return train(fusion, CONTROL, group, fused[group], fusion_run, lm_weight=1.0)


def _weight(fusion: ResolvedFusion, lm_weight: float | None) -> float:
    return fusion.config.training.lm_weight if lm_weight is None else lm_weight
