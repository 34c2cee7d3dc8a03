"""What a result cost: time on devices, tokens, bytes and money, by stage."""

from __future__ import annotations

from dataclasses import dataclass

from fusion_core.report.run_summary import RunSummary

SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True)
class Cost:
    """One stage, or all of them.

    Parameters
    ----------
    stage : str
    parts, cached : int
        Units of work, and those that an earlier run had done.
    hours : float
        Device hours of this run.
    hours_when_computed : float
        Device hours behind the result, those of earlier runs included.
    tokens : int
        Response tokens read, fused or trained on.
    bytes : int
        Size of what it published.
    """

    stage: str
    parts: int
    cached: int
    hours: float
    hours_when_computed: float
    tokens: int
    bytes: int


def costs_by_stage(summary: RunSummary) -> tuple[list[Cost], Cost] | None:
    """Add up the run's stages, in the order of the method, and all of them; None without stages."""
    if not summary.stages:
        return None
    stages = list(dict.fromkeys(row.stage for row in summary.stages))
    return [_cost(summary, stage, {stage}) for stage in stages], _cost(summary, "all", set(stages))


def _cost(summary: RunSummary, name: str, stages: set[str]) -> Cost:
    rows = [row for row in summary.stages if row.stage in stages]
    return Cost(
        stage=name,
        parts=len(rows),
        cached=sum(row.status == "cached" for row in rows),
        hours=sum(row.seconds * row.devices for row in rows) / SECONDS_AN_HOUR,
        # Summaries of earlier versions tell the time of this run alone.
        hours_when_computed=sum(max(row.seconds, row.seconds_when_computed) * row.devices for row in rows)
        / SECONDS_AN_HOUR,
        tokens=sum(row.positions or 0 for row in rows),
        bytes=sum(row.bytes for row in rows),
    )
