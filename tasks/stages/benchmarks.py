"""Stage: one model on one benchmark of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fusion_core.config import FusionConfig
from fusion_core.evaluation.benchmark import BenchmarkResult
from fusion_core.evaluation.benchmark_table import BenchmarkTable, tabulate
from fusion_core.evaluation.benchmarks import Benchmark, Subject, benchmarks_of
from fusion_core.evaluation.generation_engines import choose_engine
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import show_progress
from tasks.addresses import ADDRESS_DIGITS, ResolvedFusion, digest_of
from tasks.stages.device_slots import takes_turns
from tasks.stages.evaluate import as_model
from tasks.stages.stage_task import stage_task
from tasks.store.publication import Artifact, Publication, find_artifact
from tasks.store.workplace import Stage, Workplace, compute_once, open_workplace

RESULT = "result.json"
NO_DATA = "no-files"


def run_benchmarks(
    fusion: ResolvedFusion, model: ResolvedModel | Artifact, name: str, fusion_run: str | None = None
) -> tuple[Artifact, ...]:
    """Publish a model's results on every benchmark of the recipe, each as a Prefect task."""
    return _run_all(run_benchmark, fusion, model, name, fusion_run)


def score_benchmarks(fusion: ResolvedFusion, model: ResolvedModel | Artifact, name: str) -> tuple[Artifact, ...]:
    """Publish a model's results on every benchmark of the recipe, without Prefect or an MLflow run."""
    return _run_all(score_benchmark, fusion, model, name, None)


def _run_all(
    run_one: Callable[..., Artifact],
    fusion: ResolvedFusion,
    model: ResolvedModel | Artifact,
    name: str,
    fusion_run: str | None,
) -> tuple[Artifact, ...]:
    def find() -> ResolvedModel:
        return model if isinstance(model, ResolvedModel) else as_model(open_workplace(), fusion, model, name)

    subject = Subject(find, fusion.config.evaluation.batch_tokens)
    benchmarks = benchmarks_of(fusion.config.evaluation)
    try:
        return tuple(run_one(fusion, model, name, benchmark, subject, fusion_run) for benchmark in benchmarks)
    finally:
        subject.close()


def score_benchmark(
    fusion: ResolvedFusion,
    model: ResolvedModel | Artifact,
    name: str,
    benchmark: Benchmark,
    subject: Subject,
    fusion_run: str | None = None,
) -> Artifact:
    """Publish one model's answers and scores on one benchmark."""
    workplace = open_workplace()
    checkpoint = None if isinstance(model, ResolvedModel) else model.address
    stage = Stage(
        "evaluate",
        f"{name} on {benchmark.name}",
        benchmark_address(fusion, model if isinstance(model, ResolvedModel) else model.address, benchmark),
        () if checkpoint is None else (checkpoint,),
        fusion_run,
        fusion.config.registry.experiment,
        uses_device=True,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        try:
            with show_progress(f"{benchmark.name} {name}", "questions") as progress:
                result = benchmark.score(subject, progress).model_copy(update={"data_digest": benchmark.data_digest})
        finally:
            if takes_turns(workplace.settings):
                # The device is somebody else's until the next benchmark has its slot, so the weights are loaded again.
                subject.close()
        path = folder / RESULT
        path.write_text(result.model_dump_json(), encoding="utf-8")
        publication.add(RESULT, path)
        figures = {metric.name: metric.mean for metric in result.metrics if metric.mean is not None}
        workplace.tracking(fusion.config.registry.experiment).log(
            run,
            metrics={**figures, "items": len(result.items), "unfinished": result.unfinished},
            parameters={
                "benchmark": benchmark.kind,
                "task": benchmark.name,
                "task_version": result.version,
                "few_shot": result.few_shot,
                **{f"sandbox.{what}": how for what, how in result.protections.items()},
            },
        )
        return {
            "model": name,
            "benchmark": benchmark.kind,
            "task": benchmark.name,
            "task_version": result.version,
            "few_shot": result.few_shot,
            **figures,
        }

    return compute_once(workplace, stage, compute)


run_benchmark = stage_task(
    score_benchmark,
    "evaluate {name} on {benchmark.name}",
    lambda fusion, model, name, benchmark, *_, **__: benchmark_address(
        fusion, model.address if isinstance(model, Artifact) else model, benchmark
    ),
)


def benchmark_address(fusion: ResolvedFusion, model: ResolvedModel | str, benchmark: Benchmark) -> str:
    """Address of the results of one of the recipe's models, or of a checkpoint given by its address."""
    identity = PurePosixPath(fusion.scores(model)).parts[1]
    data = benchmark.data_digest[:ADDRESS_DIGITS] or NO_DATA
    engine = [choose_engine(model if isinstance(model, ResolvedModel) else None)] if benchmark.uses_engine else []
    return f"scores/{identity}/{data}/{digest_of(benchmark.kind, benchmark.settings, *engine)}"


def benchmark_addresses(fusion: ResolvedFusion) -> set[str]:
    """Return the addresses of all benchmark results of a recipe's models and of everything made from them."""
    made: list[ResolvedModel | str] = [fusion.pivot, *fusion.sources, fusion.merged()]
    made += [fusion.target(group) for group in fusion.groups]
    if fusion.config.evaluation.plain_sft_control:
        made.append(fusion.target(fusion.groups[0], lm_weight=1.0))
    benchmarks = benchmarks_of(fusion.config.evaluation)
    return {benchmark_address(fusion, model, benchmark) for model in made for benchmark in benchmarks}


def find_benchmarks(workplace: Workplace, fusion: ResolvedFusion, model: ResolvedModel | str) -> tuple[Artifact, ...]:
    """Return the results that the store holds of one model."""
    addresses = [benchmark_address(fusion, model, benchmark) for benchmark in benchmarks_of(fusion.config.evaluation)]
    found = [find_artifact(workplace.store, address) for address in addresses]
    return tuple(artifact for artifact in found if artifact is not None)


def read_result(workplace: Workplace, artifact: Artifact, name: str) -> BenchmarkResult:
    """Read published results; ``name`` is what this run calls the model, which is no part of the address."""
    text = (workplace.folder(artifact.address) / RESULT).read_text(encoding="utf-8")
    return BenchmarkResult.model_validate_json(text).model_copy(update={"model_name": name})


def benchmark_table(results: Mapping[str, Sequence[BenchmarkResult]], config: FusionConfig) -> BenchmarkTable | None:
    """Put the results of all models side by side, with differences to the pivot."""
    return tabulate(
        results,
        config.pivot.name,
        resamples=config.evaluation.bootstrap_resamples,
        seed=config.evaluation.bootstrap_seed,
    )
