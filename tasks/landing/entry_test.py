"""What a new source must show before anything is spent on it: that it loads, and reads the held-out dialogues well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusion_core.errors import EvaluationError
from fusion_core.models.identity import ResolvedModel
from tasks.addresses import ResolvedFusion
from tasks.store.publication import Artifact
from tasks.store.workplace import open_workplace


@contextmanager
def entry_run(fusion: ResolvedFusion, source: ResolvedModel) -> Iterator[str]:
    """Open the MLflow run of an entry test; it ends FAILED when the source does not pass."""
    config = fusion.config
    tracking = open_workplace().tracking(config.registry.experiment)
    tags = {
        "fuseline.stage": "entry test",
        "fuseline.recipe": config.name,
        f"fuseline.source.{source.name}": source.digest,
    }
    run = tracking.start_run(f"entry test of {source.name}", tags)
    with tracking.ending(run):
        yield run


def require_quality(fusion: ResolvedFusion, source: ResolvedModel, pivot: Artifact, scores: Artifact, run: str) -> None:
    """Compare a source's held-out score with the pivot's.

    Parameters
    ----------
    fusion : ResolvedFusion
    source : ResolvedModel
    pivot, scores : Artifact
        Published scores of the pivot and of the source.
    run : str
        MLflow run that is told the numbers.

    Raises
    ------
    EvaluationError
        It is worse by more than the recipe's ``refusion.largest_gap``, or could read no dialogue.
    """
    largest = fusion.config.refusion.largest_gap
    found, needed = (float(str(item.metadata["nats_per_byte"])) for item in (scores, pivot))
    tracking = open_workplace().tracking(fusion.config.registry.experiment)
    tracking.log(run, metrics={"nats_per_byte.source": found, "nats_per_byte.pivot": needed, "gap": found - needed})
    if largest is not None and not found - needed <= largest:
        raise EvaluationError(
            f"Source {source.name!r} takes {found:.3f} nats per byte of the held-out dialogues, {found - needed:.3f} "
            f"more than the pivot, where `refusion.largest_gap` allows {largest:g}; mend its weights or template, or "
            "allow more."
        )
