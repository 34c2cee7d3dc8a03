"""Stages: a model's answers to MT-Bench, and the judge's ratings of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fusion_core.config.judging import JudgeConfig, MtBenchConfig
from fusion_core.evaluation.generation_engines import choose_engine, open_generator
from fusion_core.evaluation.jsonl import read_jsonl, write_jsonl
from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.evaluation.mt_bench import (
    Answer,
    MtBench,
    answer_questions,
    judge_answers,
    judge_pairs,
    read_answers,
    score_pairs,
    score_ratings,
    write_answers,
)
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import show_progress
from tasks.addresses import ADDRESS_DIGITS, ResolvedFusion, digest_of
from tasks.settings import Settings
from tasks.stages.evaluate import as_model
from tasks.stages.judged_data import read_mt_bench
from tasks.stages.judging import (
    ALGORITHM_VERSIONS,
    deciding_settings,
    describe_judge,
    model_identity,
    open_judge,
    total_costs,
)
from tasks.stages.stage_task import stage_task
from tasks.store.manifest import metadata_of
from tasks.store.publication import Artifact, Publication
from tasks.store.workplace import Stage, Workplace, compute_once, open_workplace

ANSWERS, RATINGS, PAIRS = "answers.jsonl", "single.jsonl", "pair.jsonl"

Model = ResolvedModel | Artifact


def answer_mt_bench(
    fusion: ResolvedFusion, model: Model, name: str, benchmark: MtBench, fusion_run: str | None = None
) -> Artifact:
    """Publish a model's answers to both turns of every question."""
    workplace = open_workplace()
    config = _settings(fusion)[0]
    stage = Stage(
        "answer",
        f"{name} on MT-Bench",
        answers_address(fusion, model, benchmark),
        (model.address,) if isinstance(model, Artifact) else (),
        fusion_run,
        fusion.config.registry.experiment,
        uses_device=True,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        resolved = model if isinstance(model, ResolvedModel) else as_model(workplace, fusion, model, name)
        generator = open_generator(resolved, batch_tokens=fusion.config.evaluation.batch_tokens)
        with show_progress(f"answer MT-Bench {name}", "turns") as progress:
            answers = answer_questions(
                generator, benchmark, max_new_tokens=config.max_new_tokens, seed=config.seed, progress=progress
            )
        write_answers(folder / ANSWERS, name, answers)
        publication.add(ANSWERS, folder / ANSWERS)
        return {"model": name, "questions": len(answers), "unfinished": _unfinished(answers)}

    return compute_once(workplace, stage, compute)


def judge_mt_bench(
    fusion: ResolvedFusion,
    model: Model,
    name: str,
    benchmark: MtBench,
    answers: Artifact,
    baseline_answers: Artifact,
    fusion_run: str | None = None,
) -> Artifact:
    """Publish the judge's ratings of a model's answers and, where asked for, their comparison with the pivot's."""
    workplace = open_workplace()
    config, judge_config = _settings(fusion)
    stage = Stage(
        "judge",
        f"{name} on MT-Bench",
        judgments_address(fusion, model, benchmark),
        (answers.address, *((baseline_answers.address,) if config.pairwise else ())),
        fusion_run,
        fusion.config.registry.experiment,
        uses_device=False,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        judge = open_judge(judge_config, workplace.settings)
        mine = _read_answers(workplace, answers, benchmark)
        with show_progress(f"judge MT-Bench {name}", "judgments") as progress:
            rows = judge_answers(benchmark, name, mine, judge, judgments=config.judgments, progress=progress)
        write_jsonl(folder / RATINGS, rows)
        publication.add(RATINGS, folder / RATINGS)
        if _is_compared(fusion, name):
            theirs = _read_answers(workplace, baseline_answers, benchmark)
            with show_progress(f"compare MT-Bench {name}", "comparisons") as progress:
                pairs = judge_pairs(
                    benchmark,
                    name,
                    mine,
                    fusion.pivot.name,
                    theirs,
                    judge,
                    judgments=config.judgments,
                    progress=progress,
                )
            write_jsonl(folder / PAIRS, pairs)
            publication.add(PAIRS, folder / PAIRS)
        table = score_ratings(benchmark, {name: rows}, describe_judge(judge_config, config.judgments), name)
        figures = {metric: found.mean for metric, found in table.rows[0].means.items() if found.mean is not None}
        costs = judge.costs.model_dump()
        workplace.tracking(fusion.config.registry.experiment).log(
            run, metrics={**figures, **{f"judge/{what}": float(value) for what, value in costs.items()}}
        )
        return {"model": name, "costs": costs, **figures}

    return compute_once(workplace, stage, compute)


answer_task = stage_task(
    answer_mt_bench,
    "answer MT-Bench {name}",
    lambda fusion, model, name, benchmark, *_, **__: answers_address(fusion, model, benchmark),
)
judge_task = stage_task(
    judge_mt_bench,
    "judge MT-Bench {name}",
    lambda fusion, model, name, benchmark, *_, **__: judgments_address(fusion, model, benchmark),
)


def run_mt_bench(
    fusion: ResolvedFusion,
    model: Model,
    name: str,
    fusion_run: str | None = None,
    *,
    answer: Callable[..., Artifact] = answer_mt_bench,
    judge: Callable[..., Artifact] = judge_mt_bench,
) -> tuple[Artifact, ...]:
    """Publish a model's answers and judgments; nothing where the recipe has no MT-Bench.

    ``answer`` and ``judge`` are the stages' functions, or the tasks made of them.
    """
    if fusion.config.evaluation.mt_bench is None:
        return ()
    benchmark = read_mt_bench(_settings(fusion)[0], Settings())
    answers = answer(fusion, model, name, benchmark, fusion_run)
    baseline = answers
    if _is_compared(fusion, name):
        baseline = answer(fusion, fusion.pivot, fusion.pivot.name, benchmark, fusion_run)
    return answers, judge(fusion, model, name, benchmark, answers, baseline, fusion_run)


def mt_bench_tables(fusion: ResolvedFusion, made: Mapping[str, tuple[Artifact, ...]]) -> list[JudgedTable]:
    """Put the judgments of several models side by side: ratings, then comparisons with the pivot where there are any.

    Parameters
    ----------
    fusion : ResolvedFusion
    made : mapping from model name to what ``run_mt_bench`` returned
    """
    if fusion.config.evaluation.mt_bench is None or not made:
        return []
    workplace = open_workplace()
    config, judge_config = _settings(fusion)
    benchmark = read_mt_bench(config, workplace.settings)
    described = describe_judge(judge_config, config.judgments)
    evaluation = fusion.config.evaluation
    score = partial(score_ratings, resamples=evaluation.bootstrap_resamples, seed=evaluation.bootstrap_seed)
    compare = partial(score_pairs, resamples=evaluation.bootstrap_resamples, seed=evaluation.bootstrap_seed)
    unfinished = {name: metadata_of(answers)["unfinished"] for name, (answers, _) in made.items()}
    costs = total_costs(judgments for _, judgments in made.values())
    folders = {name: workplace.folder(judgments.address) for name, (_, judgments) in made.items()}
    ratings = {name: read_jsonl(folder / RATINGS) for name, folder in folders.items()}
    pivot = fusion.pivot.name
    tables = [score(benchmark, ratings, described, pivot, unfinished=unfinished, costs=costs)]
    pairs = {name: read_jsonl(folder / PAIRS) for name, folder in folders.items() if (folder / PAIRS).is_file()}
    if pairs:
        tables.append(compare(benchmark, pairs, described, pivot))
    return tables


def copy_fastchat_files(fusion: ResolvedFusion, made: Mapping[str, tuple[Artifact, ...]], folder: Path) -> None:
    """Write answers and judgments as FastChat's programs expect them, under the names of this run."""
    if fusion.config.evaluation.mt_bench is None or not made:
        return
    workplace = open_workplace()
    _, judge_config = _settings(fusion)
    judge_name = judge_config.model.replace("/", "--")
    together: dict[str, list[dict[str, Any]]] = {RATINGS: [], PAIRS: []}
    for name, (answers, judgments) in made.items():
        rows = read_jsonl(workplace.folder(answers.address) / ANSWERS)
        write_jsonl(folder / "model_answer" / f"{name}.jsonl", [{**row, "model_id": name} for row in rows])
        for file, key, others in ((RATINGS, "model", {}), (PAIRS, "model_1", {"model_2": fusion.pivot.name})):
            path = workplace.folder(judgments.address) / file
            if path.is_file():
                together[file] += [{**row, key: name, **others} for row in read_jsonl(path)]
    for file, rows in together.items():
        if rows:
            write_jsonl(folder / "model_judgment" / f"{judge_name}_{file}", rows)


def answers_address(fusion: ResolvedFusion, model: Model | str, benchmark: MtBench) -> str:
    """Address of the answers of one of the recipe's models, or of a checkpoint given by its address."""
    config = _settings(fusion)[0]
    spec = digest_of(
        ALGORITHM_VERSIONS["answers"],
        config.max_new_tokens,
        config.seed,
        choose_engine(model if isinstance(model, ResolvedModel) else None),
    )
    return f"answers/{model_identity(fusion, model)}/{benchmark.digest[:ADDRESS_DIGITS]}/{spec}"


def judgments_address(fusion: ResolvedFusion, model: Model | str, benchmark: MtBench) -> str:
    """Address of the judgments of those answers."""
    config, judge_config = _settings(fusion)
    answers = answers_address(fusion, model, benchmark)
    pivot = answers_address(fusion, fusion.pivot, benchmark)
    compared = digest_of(answers, pivot) if config.pairwise and pivot != answers else digest_of(answers)
    spec = digest_of(ALGORITHM_VERSIONS["judgments"], deciding_settings(judge_config), config.judgments)
    return f"judgments/{compared}/{benchmark.digest[:ADDRESS_DIGITS]}/{spec}"


def _settings(fusion: ResolvedFusion) -> tuple[MtBenchConfig, JudgeConfig]:
    evaluation = fusion.config.evaluation
    assert evaluation.mt_bench is not None and evaluation.judge is not None
    return evaluation.mt_bench, evaluation.judge


def _is_compared(fusion: ResolvedFusion, name: str) -> bool:
    return _settings(fusion)[0].pairwise and name != fusion.pivot.name


def _read_answers(workplace: Workplace, artifact: Artifact, benchmark: MtBench) -> list[Answer]:
    return read_answers(workplace.folder(artifact.address) / ANSWERS, benchmark)


def _unfinished(answers: list[Answer]) -> int:
    return sum(not finished for one in answers for finished in one.finished)
