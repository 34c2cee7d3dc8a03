"""The MLflow run that holds a whole fusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusion_core.recipes import recipe_yaml
from tasks.addresses import ResolvedFusion
from tasks.tracking import Tracking, flatten
from tasks.workplace import open_workplace


@contextmanager
def fusion_run(fusion: ResolvedFusion) -> Iterator[str]:
    """Open the parent run of a fusion with its parameters and pinned inputs; it ends FAILED when the flow raises."""
    config = fusion.config
    tracking: Tracking = open_workplace().tracking(config.registry.experiment)
    run = tracking.start_run(config.name, {"fuseline.stage": "fusion", "fuseline.address": fusion.merged()})
    tracking.log(
        run,
        parameters=flatten(config.model_dump(mode="json")),
        tags={
            "fuseline.dataset": fusion.dataset_digest,
            "fuseline.pivot": fusion.pivot.digest,
            **{f"fuseline.source.{source.name}": source.digest for source in fusion.sources},
        },
    )
    tracking.log_text(run, recipe_yaml(config), "recipe.yaml")
    try:
        yield run
    except BaseException:
        tracking.end_run(run, "FAILED")
        raise
    tracking.end_run(run, "FINISHED")
