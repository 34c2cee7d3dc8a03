"""Tables of a fusion in Prefect's pages: what is found and what will be computed, then scores, coverage and weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from fusion_core.report.run_summary import MergeSummary, RunSummary
from tasks.addresses import ResolvedFusion
from tasks.plan import stage_statuses
from tasks.runs.artifact_keys import artifact_key
from tasks.settings import Settings
from tasks.stages.summarize import REPORT, RunFiles
from tasks.store.workplace import open_workplace

Row = dict[str, Any]
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def show_fusion_plan(fusion: ResolvedFusion) -> None:
    """Show which stages the store holds and which will be computed; nothing without a Prefect server."""
    if Settings().prefect_api_url:
        rows = plan_rows(stage_statuses(open_workplace(), fusion))
        found = sum(row["state"] == "found in the store" for row in rows)
        _table(fusion.config.name, "plan", rows, f"{found} of {len(rows)} stages are found in the store.")


def show_fusion_result(fusion: ResolvedFusion, files: RunFiles, run: str | None) -> None:
    """Show scores, coverage, merge weights and the way to the report; nothing without a Prefect server."""
    settings = Settings()
    if not settings.prefect_api_url:
        return
    summary, name = files.summary, fusion.config.name
    _table(name, "scores", score_rows(summary), "Nats per response byte on held-out dialogues; lower is better.")
    _table(name, "coverage", coverage_rows(summary), "Positions of the pivot that carry a source's knowledge.")
    if summary.merge is not None:
        _table(name, "merge-weights", weight_rows(summary.merge), "Mean merge weight of each target by layer.")
    report = files.folder / REPORT
    link = report.as_uri()
    if run is not None and settings.tracking_uri.startswith("http"):
        experiment = open_workplace().tracking(fusion.config.registry.experiment).experiment_id
        link = f"{settings.shown_tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}/artifacts"
    create_link_artifact(
        link,
        key=artifact_key(f"{name}-report"),
        link_text=REPORT,
        description=f"Among the run's artifacts; on the worker {report}",
    )


def plan_rows(statuses: Mapping[tuple[str, str], str]) -> list[Row]:
    """Return a row for each stage."""
    words = {"cached": "found in the store", "compute": "will be computed"}
    return [
        {"stage": stage, "for": subject, "state": words.get(state, state)}
        for (stage, subject), state in statuses.items()
    ]


def score_rows(summary: RunSummary) -> list[Row]:
    """Return a row for each scored model: the mean of the domains, and each domain."""
    if summary.scores is None:
        return []
    return [
        {
            "model": row.model,
            "mean": round(row.mean_of_domains.nats_per_byte, 4),
            **{domain: round(score.nats_per_byte, 4) for domain, score in row.domains.items()},
        }
        for row in summary.scores.rows
    ]


def coverage_rows(summary: RunSummary) -> list[Row]:
    """Return a row for each source and domain, as shares of the positions."""
    return [
        {
            "source": row.source,
            "domain": row.domain,
            "positions": row.positions,
            "at a boundary": _percent(row.at_boundary, row.positions),
            "conditioned": _percent(row.conditioned, row.positions),
            "fallen back": _percent(row.fallen_back, row.positions),
            "mass kept": f"{row.mass_kept:.1%}",
            "source won": _percent(row.source_won, row.positions),
        }
        for row in summary.coverage
    ]


def weight_rows(merge: MergeSummary) -> list[Row]:
    """Return a row for each layer, and one for what belongs to none: the mean weight of each target."""
    groups: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for tensor, weights in merge.weights.items():
        layer = LAYER.search(tensor)
        groups[int(layer.group(1)) if layer else -1].append(weights)
    rows = []
    for layer_number in sorted(groups):
        means = np.mean(np.asarray(groups[layer_number], dtype=np.float64), axis=0)
        label = "outside layers" if layer_number < 0 else f"layer {layer_number}"
        rows.append({"part": label, **{name: round(float(m), 4) for name, m in zip(merge.targets, means, strict=True)}})
    return rows


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _table(fusion: str, what: str, rows: list[Row], description: str) -> None:
    if rows:
        create_table_artifact(rows, key=artifact_key(f"{fusion}-{what}"), description=description)


show_plan = task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)(show_fusion_plan)
show_result = task(name="tables", task_run_name="tables", cache_policy=NO_CACHE, persist_result=False)(
    show_fusion_result
)
