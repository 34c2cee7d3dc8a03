"""Stage: a target, trained from the pivot on the fused distributions of one pair."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion_core.models.folders import write_chat_template
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import show_progress
from fusion_core.training.processes import follows_another_process
from fusion_core.training.target import TrainingReport, TrainingWindow, train_target
from tasks.addresses import CONTROL, ResolvedFusion
from tasks.stages.prepare import shard_names
from tasks.stages.stage_task import stage_task
from tasks.stages.training_checkpoints import StoredCheckpoints
from tasks.store.publication import Artifact, Publication, find_artifact
from tasks.store.workplace import Stage, Workplace, compute_once, open_workplace

PUBLICATION_POLL_SECONDS = 0.5


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
    stage = Stage("train", name, address, (fused.address,), fusion_run, config.registry.experiment, uses_device=True)
    stored = StoredCheckpoints(workplace.store, address, config.training.keep_checkpoints)

    def fine_tune(folder: Path, **listeners: Any) -> TrainingReport:
        fused_folder = workplace.folder(fused.address)
        return train_target(
            fusion.pivot.folder,
            [fused_folder / shard for shard in shard_names(fused)],
            folder / "target",
            config.training,
            lm_weight=lm_weight,
            checkpoint_folder=folder / "checkpoints",
            trust_remote_code=fusion.pivot.trust_remote_code,
            **listeners,
        )

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

        on_checkpoint = None
        if config.training.checkpoints_in_store:
            stored.fetch_newest(folder / "checkpoints")
            on_checkpoint = stored.put
        with show_progress(f"train {name}", "steps") as progress:
            report = fine_tune(folder, progress=progress, on_window=on_window, on_checkpoint=on_checkpoint)
        output = folder / "target"
        write_chat_template(output, fusion.pivot.chat_template)
        publication.add_folder(output)
        return {
            "target": name,
            "lm_weight": _weight(fusion, lm_weight),
            "processes": config.training.processes,
            "training": asdict(report) | {"windows": [asdict(window) for window in report.windows]},
        }

    if follows_another_process():
        return _take_part(workplace, address, fine_tune)
    made = compute_once(workplace, stage, compute)
    if config.training.checkpoints_in_store:
        stored.remove()
    return made


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


def _take_part(workplace: Workplace, address: str, fine_tune: Callable[[Path], TrainingReport]) -> Artifact:
    """Train with the first process of an outside launch, which alone publishes, and return what it published."""
    found = find_artifact(workplace.store, address)
    if found is None:
        with tempfile.TemporaryDirectory(prefix="fuseline-training-") as folder:
            fine_tune(Path(folder))
    while found is None:
        time.sleep(PUBLICATION_POLL_SECONDS)
        found = find_artifact(workplace.store, address)
    return found


def _weight(fusion: ResolvedFusion, lm_weight: float | None) -> float:
    return fusion.config.training.lm_weight if lm_weight is None else lm_weight
