"""Stages: a model's outputs for AlpacaEval, and the judge's preferences between them and the baseline's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusion_core.config.judging import AlpacaEvalConfig, JudgeConfig
from fusion_core.evaluation.alpaca_eval import (
    TOP_LOGPROBS,
    AlpacaEval,
    answer_instructions,
    judge_outputs,
    read_outputs,
)
from fusion_core.evaluation.alpaca_scores import score_annotations
from fusion_core.evaluation.generation import Sampling
from fusion_core.evaluation.generation_engines import choose_engine, open_generator
from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import show_progress
from tasks.addresses import ADDRESS_DIGITS, ResolvedFusion, digest_of
from tasks.settings import Settings
from tasks.stages.evaluate import as_model
from tasks.stages.judged_data import read_alpaca_eval
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
from tasks.store.workplace import Stage, compute_once, open_workplace

OUTPUTS, ANNOTATIONS = "outputs.json", "annotations.json"

Model = ResolvedModel | Artifact


def answer_alpaca_eval(
    fusion: ResolvedFusion, model: Model, name: str, benchmark: AlpacaEval, fusion_run: str | None = None
) -> Artifact:
    """Publish a model's output for every instruction."""
    workplace = open_workplace()
    config = _settings(fusion)[0]
    stage = Stage(
        "answer",
        f"{name} on AlpacaEval",
        outputs_address(fusion, model, benchmark),
        (model.address,) if isinstance(model, Artifact) else (),
        fusion_run,
        fusion.config.registry.experiment,
        uses_device=True,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        resolved = model if isinstance(model, ResolvedModel) else as_model(workplace, fusion, model, name)
        generator = open_generator(resolved, batch_tokens=fusion.config.evaluation.batch_tokens)
        sampling = Sampling(config.temperature, config.max_new_tokens, config.seed)
        with show_progress(f"answer AlpacaEval {name}", "instructions") as progress:
            rows = answer_instructions(generator, benchmark, sampling, progress)
        _write(publication, folder / OUTPUTS, rows)
        return {"model": name, "unfinished": sum(not row["finished"] for row in rows)}

    return compute_once(workplace, stage, compute)


def judge_alpaca_eval(
    fusion: ResolvedFusion,
    model: Model,
    name: str,
    benchmark: AlpacaEval,
    outputs: Artifact,
    fusion_run: str | None = None,
) -> Artifact:
    """Publish the judge's preference between every output and the baseline's."""
    workplace = open_workplace()
    config, judge_config = _settings(fusion)
    stage = Stage(
        "judge",
        f"{name} on AlpacaEval",
        annotations_address(fusion, model, benchmark),
        (outputs.address,),
        fusion_run,
        fusion.config.registry.experiment,
        uses_device=False,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        # One token decides; alpaca_eval asks for no more.
        judge = open_judge(judge_config, workplace.settings, max_tokens=1, top_logprobs=TOP_LOGPROBS)
        answers = read_outputs(workplace.folder(outputs.address) / OUTPUTS)
        with show_progress(f"judge AlpacaEval {name}", "judgments") as progress:
            rows = judge_outputs(benchmark, name, answers, judge, seed=config.seed, progress=progress)
        _write(publication, folder / ANNOTATIONS, rows)
        costs = judge.costs.model_dump()
        table = score_annotations(benchmark, {name: rows}, describe_judge(judge_config))
        figures = {metric: found.mean for metric, found in table.rows[0].means.items() if found.mean is not None}
        workplace.tracking(fusion.config.registry.experiment).log(
            run, metrics={**figures, **{f"judge/{what}": float(value) for what, value in costs.items()}}
        )
        return {"model": name, "costs": costs, **figures}

    return compute_once(workplace, stage, compute)


answer_task = stage_task(
    answer_alpaca_eval,
    "answer AlpacaEval {name}",
    lambda fusion, model, name, benchmark, *_, **__: outputs_address(fusion, model, benchmark),
)
judge_task = stage_task(
    judge_alpaca_eval,
    "judge AlpacaEval {name}",
    lambda fusion, model, name, benchmark, *_, **__: annotations_address(fusion, model, benchmark),
)


def run_alpaca_eval(
    fusion: ResolvedFusion,
    model: Model,
    name: str,
    fusion_run: str | None = None,
    *,
    answer: Callable[..., Artifact] = answer_alpaca_eval,
    judge: Callable[..., Artifact] = judge_alpaca_eval,
) -> tuple[Artifact, ...]:
    """Publish a model's outputs and annotations; nothing where the recipe has no AlpacaEval.

    ``answer`` and ``judge`` are the stages' functions, or the tasks made of them.
    """
    if fusion.config.evaluation.alpaca_eval is None:
        return ()
    benchmark = read_alpaca_eval(_settings(fusion)[0], Settings())
    outputs = answer(fusion, model, name, benchmark, fusion_run)
    return outputs, judge(fusion, model, name, benchmark, outputs, fusion_run)


def alpaca_eval_tables(fusion: ResolvedFusion, made: Mapping[str, tuple[Artifact, ...]]) -> list[JudgedTable]:
    """Put the win rates of several models side by side."""
    if fusion.config.evaluation.alpaca_eval is None or not made:
        return []
    workplace = open_workplace()
    config, judge_config = _settings(fusion)
    rows = {
        name: json.loads((workplace.folder(judged.address) / ANNOTATIONS).read_text(encoding="utf-8"))
        for name, (_, judged) in made.items()
    }
    return [
        score_annotations(
            read_alpaca_eval(config, workplace.settings),
            rows,
            describe_judge(judge_config),
            unfinished={name: metadata_of(outputs)["unfinished"] for name, (outputs, _) in made.items()},
            costs=total_costs(judged for _, judged in made.values()),
            resamples=fusion.config.evaluation.bootstrap_resamples,
            seed=fusion.config.evaluation.bootstrap_seed,
        )
    ]


def outputs_address(fusion: ResolvedFusion, model: Model | str, benchmark: AlpacaEval) -> str:
    """Address of the outputs of one of the recipe's models, or of a checkpoint given by its address."""
    config = _settings(fusion)[0]
    spec = digest_of(
        ALGORITHM_VERSIONS["answers"],
        config.max_new_tokens,
        config.temperature,
        config.seed,
        choose_engine(model if isinstance(model, ResolvedModel) else None),
    )
    return f"answers/{model_identity(fusion, model)}/{benchmark.digest[:ADDRESS_DIGITS]}/{spec}"


def annotations_address(fusion: ResolvedFusion, model: Model | str, benchmark: AlpacaEval) -> str:
    """Address of the annotations of those outputs."""
    config, judge_config = _settings(fusion)
    outputs = digest_of(outputs_address(fusion, model, benchmark))
    spec = digest_of(ALGORITHM_VERSIONS["judgments"], deciding_settings(judge_config), config.seed)
    return f"judgments/{outputs}/{benchmark.digest[:ADDRESS_DIGITS]}/{spec}"


def _settings(fusion: ResolvedFusion) -> tuple[AlpacaEvalConfig, JudgeConfig]:
    evaluation = fusion.config.evaluation
    assert evaluation.alpaca_eval is not None and evaluation.judge is not None
    return evaluation.alpaca_eval, evaluation.judge


def _write(publication: Publication, path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    publication.add(path.name, path)
