"""Stage: what the run did, as data, as an HTML report and as the model card."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from fusion_core.config import FusionConfig
from fusion_core.devices import default_device
from fusion_core.evaluation.answer_changes import changed_answers
from fusion_core.evaluation.benchmark_table import BenchmarkTable
from fusion_core.evaluation.dialogue_changes import largest_changes
from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.evaluation.score_table import ScoreTable, compare
from fusion_core.models.card import model_card
from fusion_core.report.html import render_report
from fusion_core.report.run_summary import Price, RunSummary
from fusion_core.resident_memory import peak_resident_bytes
from tasks.addresses import FUSED, ResolvedFusion
from tasks.runs.summary_rows import (
    coverage_rows,
    data_rows,
    merge_summary,
    model_rows,
    stage_rows,
    training_curve,
)
from tasks.stages.benchmarks import benchmark_table, read_result
from tasks.stages.evaluate import read_scores
from tasks.stages.judged import JudgedModel, copy_judged_files, judged_tables
from tasks.stages.prepare import PreparedDialogues, read_split
from tasks.store.local_files import full_disk_errors
from tasks.store.manifest import CARD, metadata_of
from tasks.store.publication import Artifact
from tasks.store.workplace import Workplace, open_workplace

REPORT = "report.html"
SUMMARY = "summary.json"
PACKAGES = ("fuseline", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "prefect", "mlflow")


class RunFiles(BaseModel):
    """Where a run's own files lie on the machine that made them."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    overall: dict[str, float]
    cached: int
    computed: int

    @property
    def summary(self) -> RunSummary:
        """The summary, read back."""
        return RunSummary.model_validate_json((self.folder / SUMMARY).read_text(encoding="utf-8"))


def write_summary(
    fusion: ResolvedFusion,
    dialogues: PreparedDialogues,
    distributions: Mapping[str, Artifact],
    fused: list[Artifact],
    checkpoints: Mapping[str, Artifact],
    scores: Mapping[str, Artifact],
    benchmarks: Mapping[str, Sequence[Artifact]],
    judged: Mapping[str, JudgedModel],
    fusion_run: str | None = None,
    seconds: float | None = None,
) -> RunFiles:
    """Gather what all stages published, and write summary, report and model card of the run."""
    workplace = open_workplace()
    config = fusion.config
    pivot = config.pivot.name
    held_out = {name: read_scores(workplace, artifact, name) for name, artifact in scores.items()}
    table = compare(
        held_out,
        pivot,
        resamples=config.evaluation.bootstrap_resamples,
        seed=config.evaluation.bootstrap_seed,
    )
    group_names = [[source.name for source in group] for group in fusion.groups]
    stages = stage_rows(dialogues, distributions, fused, checkpoints, scores, benchmarks, judged)
    results = {
        name: [read_result(workplace, artifact, name) for artifact in several] for name, several in benchmarks.items()
    }
    # Beside the fused model stand those that it was made from.
    compared = [pivot, *(source.name for source in fusion.sources), FUSED]
    summary = RunSummary(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds if seconds is not None else _seconds_since_start(workplace, config, fusion_run),
        recipe=config.model_dump(mode="json", exclude_none=True),
        command="fuseline run recipe.yaml",
        device=_device_name(),
        peak_memory_bytes=peak_resident_bytes(),
        models=model_rows(fusion, checkpoints),
        data=data_rows(fusion, dialogues),
        quarantined_dialogues=metadata_of(dialogues.train)["quarantined"],
        scores=table,
        benchmarks=benchmark_table(results, config),
        judged=judged_tables(fusion, judged),
        dialogue_changes=largest_changes(
            {name: held_out[name] for name in compared}, read_split(workplace, dialogues.held_out), FUSED, pivot
        ),
        answer_changes=changed_answers(results, FUSED, pivot, compared),
        stages=stages,
        coverage=tuple(
            row for pair, names in zip(fused, group_names, strict=True) for row in coverage_rows(pair, names)
        ),
        curves=tuple(training_curve(name, made) for name, made in checkpoints.items() if "training" in made.metadata),
        merge=merge_summary(checkpoints[FUSED], [source.name for source in fusion.sources]),
        price=_price(workplace),
        uses_gpu=default_device().type == "cuda",
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    )
    with full_disk_errors("The report", workplace.settings.home):
        files = _write(workplace, fusion, summary, checkpoints[FUSED], fusion_run)
    copy_judged_files(fusion, judged, files.folder / "mt_bench")
    return files


summarize = task(name="summarize", task_run_name="report", cache_policy=NO_CACHE, persist_result=False)(write_summary)


def _write(
    workplace: Workplace, fusion: ResolvedFusion, summary: RunSummary, merged: Artifact, fusion_run: str | None
) -> RunFiles:
    folder = workplace.settings.home / "runs" / f"{fusion.config.name}-{fusion_run or merged.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    card = model_card(summary)
    (folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    (folder / REPORT).write_text(render_report(summary), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    # The card tells the scores, which are known only after the checkpoint is whole, so it lies beside what the
    # manifest lists and is written anew by every run.
    workplace.store.write(f"{merged.address}/{CARD}", card.encode())
    tracking = workplace.tracking(fusion.config.registry.experiment)
    for name in (SUMMARY, REPORT, CARD):
        if fusion_run is not None:
            tracking.log_file(fusion_run, folder / name)
    assert summary.scores is not None
    figures = score_metrics(summary.scores) | benchmark_metrics(summary.benchmarks) | judged_metrics(summary.judged)
    tracking.log(fusion_run, metrics=figures | {"seconds": summary.seconds})
    statuses = [row.status for row in summary.stages]
    return RunFiles(
        folder=folder,
        overall={row.model: row.overall.nats_per_byte for row in summary.scores.rows},
        cached=statuses.count("cached"),
        computed=statuses.count("computed"),
    )


def score_metrics(table: ScoreTable) -> dict[str, float]:
    """Flatten the score table to metrics such as ``nats_per_byte.fused.mathematics``."""
    metrics: dict[str, float] = {}
    for row in table.rows:
        metrics[f"nats_per_byte.{row.model}"] = row.overall.nats_per_byte
        metrics |= {f"nats_per_byte.{row.model}.{domain}": s.nats_per_byte for domain, s in row.domains.items()}
    return metrics


def benchmark_metrics(table: BenchmarkTable | None) -> dict[str, float]:
    """Flatten the benchmark table to metrics such as ``exact_match/gsm8k.fused``."""
    rows = table.rows if table is not None else ()
    return {f"{metric}.{row.model}": mean.value for row in rows for metric, mean in row.means.items()}


def judged_metrics(tables: Sequence[JudgedTable]) -> dict[str, float]:
    """Flatten judged tables to metrics such as ``mt_bench/overall.fused``; what has no judgment is left out."""
    return {
        f"{metric}.{row.model}": found.mean
        for table in tables
        for row in table.rows
        for metric, found in row.means.items()
        if found.mean is not None
    }


def _price(workplace: Workplace) -> Price | None:
    settings = workplace.settings
    if settings.price_per_hour is None:
        return None
    return Price(per_hour=settings.price_per_hour, currency=settings.price_currency)


def _seconds_since_start(workplace: Workplace, config: FusionConfig, fusion_run: str | None) -> float:
    if fusion_run is None:
        return 0.0
    tracking = workplace.tracking(config.registry.experiment)
    # Not since the run's own start: an attempt goes on in the run of one that failed, maybe days ago.
    return round(time.time() - tracking.begun(fusion_run), 1)


def _device_name() -> str:
    device = default_device()
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} processor, {_cores()} cores"


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:
        return "not installed"
