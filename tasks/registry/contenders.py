"""Everything that a registered version was scored on, as the gates of a promotion want it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

from fusion_core.evaluation.decision import Contender, Measure
from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.report.run_summary import RunSummary
from tasks.addresses import CONTROL, FUSED
from tasks.registry.lineage_record import LineageRecord
from tasks.registry.versions import RegisteredVersion, read_record, run_artifact
from tasks.runs.tracking import Tracking
from tasks.stages.evaluate import read_scores
from tasks.stages.summarize import SUMMARY
from tasks.store.publication import find_artifact
from tasks.store.workplace import Workplace


@runtime_checkable
class Measures(Protocol):
    """A table of a run's summary whose metrics can be held against gates."""

    def measures(self, model: str) -> dict[str, Measure]:
        """Return one model's metrics."""


def contender_of(workplace: Workplace, tracking: Tracking, version: RegisteredVersion) -> Contender:
    """Gather the scores of a version's fused model."""
    record = read_record(tracking, version)
    return _contender(workplace, record, _summary(tracking, version), FUSED, f"version {version.version}")


def rivals_of(workplace: Workplace, tracking: Tracking, version: RegisteredVersion) -> dict[str, Contender]:
    """Gather the scores of the pivot and, where it was trained, of the plain fine-tuning of a version's run."""
    record = read_record(tracking, version)
    summary = _summary(tracking, version)
    pivot = record.models[0].name
    rivals = {"pivot": _contender(workplace, record, summary, pivot, f"pivot {pivot}")}
    if record.stage("evaluate", CONTROL) is not None:
        rivals["plain_sft"] = _contender(workplace, record, summary, CONTROL, "plain fine-tuning")
    return rivals


def _contender(
    workplace: Workplace, record: LineageRecord, summary: RunSummary | None, model: str, name: str
) -> Contender:
    measures: dict[str, Measure] = {}
    for table in _tables(summary):
        measures |= table.measures(model)
    return Contender(name=name, held_out=_held_out(workplace, record, model), measures=measures)


def _held_out(workplace: Workplace, record: LineageRecord, model: str) -> HeldOutScores | None:
    address = record.stage("evaluate", model)
    found = find_artifact(workplace.store, address) if address is not None else None
    return None if found is None else read_scores(workplace, found, model)


def _summary(tracking: Tracking, version: RegisteredVersion) -> RunSummary | None:
    text = run_artifact(tracking, version.run, SUMMARY)
    try:
        return None if text is None else RunSummary.model_validate_json(text)
    except ValidationError:
        # Another version of Fuseline wrote it: what it holds counts as not scored, and the gate says so.
        return None


def _tables(summary: RunSummary | None) -> Iterator[Measures]:
    for name in type(summary).model_fields if summary is not None else ():
        value: Any = getattr(summary, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Measures):
                yield item
