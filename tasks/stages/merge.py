"""Stage: all targets merged into the fused model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion_core.merging import merge_checkpoints
from fusion_core.merging.report import JSON_NAME
from fusion_core.models.folders import write_chat_template
from fusion_core.progress import show_progress
from tasks.addresses import ResolvedFusion
from tasks.stages.stage_task import stage_task
from tasks.store.publication import Artifact, Publication
from tasks.store.workplace import Stage, compute_once, open_workplace


def merge_targets(fusion: ResolvedFusion, targets: list[Artifact], fusion_run: str | None = None) -> Artifact:
    """Publish the fused model: the targets merged as the recipe says; with joint fusion, the one target itself."""
    workplace = open_workplace()
    config = fusion.config
    if config.strategy == "joint":
        return targets[0].model_copy(update={"reused": True})
    stage = Stage(
        "merge",
        config.merge.method,
        fusion.merge_of([target.address for target in targets]),
        tuple(target.address for target in targets),
        fusion_run,
        config.registry.experiment,
        uses_device=False,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        output = folder / "merged"
        with show_progress(f"merge {len(targets)} targets", "tensors") as progress:
            report = merge_checkpoints(
                fusion.pivot.folder,
                [workplace.folder(target.address) for target in targets],
                output,
                config.merge,
                # What is published tells nothing of folders, which are a machine's own, nor of names, a recipe's own.
                names=[fusion.pivot.digest, *(target.address for target in targets)],
                progress=progress,
            )
        write_chat_template(output, fusion.pivot.chat_template)
        publication.add_folder(output)
        tracking = workplace.tracking(config.registry.experiment)
        tracking.log(run, parameters=config.merge.model_dump())
        named = replace(report, pivot=fusion.pivot.name, targets=target_names(fusion, targets))
        tracking.log_text(run, named.to_json(), JSON_NAME)
        return {
            "method": config.merge.method,
            "granularity": config.merge.granularity,
            "weights": report.weights,
        }

    return compute_once(workplace, stage, compute)


def target_names(fusion: ResolvedFusion, targets: Sequence[Artifact]) -> list[str]:
    """Return what this recipe calls each target, and for one that is not its own what it was called when made."""
    own = {fusion.target(group): fusion.target_name(group) for group in fusion.groups}
    return [own.get(target.address) or str(target.metadata.get("subject", target.address)) for target in targets]


merge = stage_task(merge_targets, "merge targets", lambda fusion, *_, **__: fusion.merged())
