"""What MLflow's pages say of a fusion's run and of a registered version."""

from __future__ import annotations

from fusion_core.report.headline import headline
from fusion_core.report.run_summary import RunSummary
from tasks.addresses import ResolvedFusion
from tasks.code_version import code_version
from tasks.registry.versions import RUN
from tasks.runs.tracking import Tracking
from tasks.store.interface import Store
from tasks.store.publication import find_artifact
from tasks.store.workplace import computed_by

# The tag that MLflow shows as a run's description.
NOTE = "mlflow.note.content"


def version_tags(fusion: ResolvedFusion, summary: RunSummary, run: str | None) -> dict[str, str]:
    """Say what a version was made from, and how it scores, one line each."""
    models = {model.name: model for model in (*summary.models_of("pivot"), *summary.models_of("source"))}
    tags = {
        f"fuseline.{model.role}.{name}": f"{model.origin} at {model.revision or f'digest {model.digest[:16]}'}"
        for name, model in models.items()
    }
    tags |= {"fuseline.dataset": fusion.dataset_digest, "fuseline.code": str(code_version())}
    if run is not None:
        tags[RUN] = run
    for row in summary.scores.rows if summary.scores is not None else ():
        tags[f"nats_per_byte.{row.model}"] = f"{row.overall.nats_per_byte:.4f}"
    return tags


def version_text(summary: RunSummary, name: str, version: str) -> str:
    """Describe a version: how it scores, what it was made from, and how to load and trace it."""
    pivot, *sources = (*summary.models_of("pivot"), *summary.models_of("source"))
    lines = [
        *(f"**{sentence}**\n" for sentence in headline(summary)),
        f"Fused into {pivot.name} from {', '.join(source.name for source in sources)}.",
        "",
        *_score_table(summary),
        "",
        "```python",
        f'mlflow.transformers.load_model("models:/{name}/{version}")  # a text-generation pipeline',
        "```",
        "",
        f"`fuseline lineage {name} {version}` says what it was made from, `fuseline reproduce {name} {version}` how to "
        "make it again. The model card and the report are files of its source run.",
    ]
    return "\n".join(lines)


def run_text(store: Store, tracking: Tracking, summary: RunSummary, name: str, version: str) -> str:
    """Describe a fusion's run: how its model scores, and each stage with the run that computed it."""
    lines = [
        *(f"**{sentence}**\n" for sentence in headline(summary)),
        f"Registered as [{name} version {version}](#/models/{name}/versions/{version}).",
        "",
        *_score_table(summary),
        "",
        "| stage | for | | seconds | bytes | computed in |",
        "|---|---|---|---:|---:|---|",
    ]
    for row in summary.stages:
        seconds = f"{row.seconds:,.1f}" if row.status == "computed" else ""
        link = _run_link(store, tracking, row.address)
        lines.append(f"| {row.stage} | {row.subject} | {row.status} | {seconds} | {row.bytes:,} | {link} |")
    return "\n".join(lines)


def _run_link(store: Store, tracking: Tracking, address: str) -> str:
    found = find_artifact(store, address)
    run = "" if found is None else computed_by(found)
    return f"[{run[:8]}](#/experiments/{tracking.experiment_id}/runs/{run})" if run.isalnum() else run


def _score_table(summary: RunSummary) -> list[str]:
    table = summary.scores
    if table is None:
        return []
    lines = [f"| nats per byte | all | {' | '.join(table.domains)} |", "|---|---:|" + "---:|" * len(table.domains)]
    for row in table.rows:
        parts = " | ".join(f"{row.domains[domain].nats_per_byte:.4f}" for domain in table.domains)
        lines.append(f"| {row.model} | {row.overall.nats_per_byte:.4f} | {parts} |")
    return lines
