"""The public suites, run by EleutherAI's lm-eval on a model that is loaded here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from fusion_core.config.benchmarks import LmEvalConfig, LmEvalTask
from fusion_core.errors import ConfigError, EvaluationError, first_line
from fusion_core.evaluation.benchmark import BenchmarkItem, BenchmarkResult, Metric
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_model, load_tokenizer

# Metrics that lm-eval computes of the items' own scores and means over them.
ITEMS_AGREE_WITHIN = 1e-6
FEW_DRAWS = 500
CODE_SWITCH = "HF_ALLOW_CODE_EVAL"


def check_lm_eval() -> None:
    """Raise ConfigError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "The recipe's `evaluation.lm_eval` needs lm-eval, which is not installed; run "
            "`pip install -c constraints.txt -e '.[lm-eval]'` in the clone of Fuseline, or remove the section."
        )


def lm_eval_version() -> str:
    """Return the version of the installed lm-eval."""
    from importlib.metadata import version

    return version("lm_eval")


def score_lm_eval(
    model: ResolvedModel, config: LmEvalConfig, task: LmEvalTask, device: torch.device
) -> BenchmarkResult:
    """Run one task of lm-eval on a checkpoint.

    Raises
    ------
    ConfigError
        If lm-eval is not installed or knows no such task.
    EvaluationError
        If the task's data cannot be fetched, or it fails.
    """
    check_lm_eval()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if config.include_path is None else str(config.include_path))
    if task.name not in manager.all_tasks:
        raise ConfigError(
            f"lm-eval {lm_eval_version()} knows no task {task.name!r}; `lm-eval ls tasks` lists them, and "
            "`evaluation.lm_eval.include_path` names a folder with more."
        )
    loaded = HFLM(
        pretrained=load_model(model, device),
        tokenizer=load_tokenizer(model),
        batch_size=config.batch_size,
        device=str(device),
    )
    with _code_allowed(config.run_generated_code):
        try:
            results = simple_evaluate(
                model=loaded,
                tasks=[task.name],
                num_fewshot=task.few_shot,
                limit=task.limit,
                task_manager=manager,
                apply_chat_template=config.chat_template,
                fewshot_as_multiturn=config.chat_template,
                # Intervals are drawn here, over the items and paired between models; these are for what is no mean.
                bootstrap_iters=FEW_DRAWS,
                confirm_run_unsafe_code=config.run_generated_code,
            )
        except Exception as error:
            raise EvaluationError(
                f"Model {model.name!r}: lm-eval's task {task.name!r} failed ({type(error).__name__}: "
                f"{first_line(error)}); its datasets come from the hub, so check the network, HF_TOKEN and the task's "
                "own needs, or remove it from the recipe."
            ) from error
    if results is None:
        raise EvaluationError(f"Model {model.name!r}: lm-eval's task {task.name!r} gave no results; remove it.")
    return _result(model.name, task, results)


@contextmanager
def _code_allowed(allowed: bool) -> Iterator[None]:
    before = os.environ.get(CODE_SWITCH)
    if allowed:
        os.environ[CODE_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CODE_SWITCH, None)
        else:
            os.environ[CODE_SWITCH] = before


def _result(model_name: str, task: LmEvalTask, results: Mapping[str, Any]) -> BenchmarkResult:
    """Turn lm-eval's results of one task, or one group of tasks, into ours."""
    figures: dict[str, Any] = results["results"].get(task.name) or {}
    samples = results.get("samples", {}).get(task.name, [])
    higher = results.get("higher_is_better", {}).get(task.name, {})
    metrics, columns = [], []
    for key, value in figures.items():
        metric, _, filtering = key.partition(",")
        # Beside figures there stand aliases, sample counts, and errors of figures.
        if not filtering or metric.endswith("_stderr") or isinstance(value, (str, bool)) or value is None:
            continue
        column = _item_scores(samples, metric, filtering, float(value))
        error = figures.get(f"{metric}_stderr,{filtering}")
        metrics.append(
            Metric(
                name=f"lm_eval/{task.name}.{metric}" + ("" if filtering == "none" else f".{filtering}"),
                mean=float(value),
                n=len(column) if column is not None else int(_documents(results, task.name)),
                higher_is_better=bool(higher.get(metric, True)),
                is_mean_of_items=column is not None,
                standard_error=float(error) if isinstance(error, (int, float)) else None,
            )
        )
        if column is not None:
            columns.append(column)
    if not metrics:
        raise EvaluationError(f"lm-eval's task {task.name!r} gave no figure; it may be a group whose tasks have them.")
    ids = sorted(set().union(*columns), key=lambda one: (len(one), one)) if columns else []
    return BenchmarkResult(
        benchmark="lm_eval",
        name=task.name,
        model_name=model_name,
        version=f"{results.get('versions', {}).get(task.name, 'unknown')} (lm-eval {lm_eval_version()})",
        few_shot=int(results.get("n-shot", {}).get(task.name, 0) or 0),
        metrics=tuple(metrics),
        items=tuple(BenchmarkItem(id=one, scores=tuple(column.get(one) for column in columns)) for one in ids),
    )


def _item_scores(samples: list[dict[str, Any]], metric: str, filtering: str, mean: float) -> dict[str, float] | None:
    """Return each document's score, or None where the figure is not their mean."""
    scores = {
        str(sample["doc_id"]): float(sample[metric])
        for sample in samples
        if sample.get("filter", "none") == filtering and isinstance(sample.get(metric), (int, float))
    }
    if not scores or abs(sum(scores.values()) / len(scores) - mean) > ITEMS_AGREE_WITHIN:
        return None
    return scores


def _documents(results: Mapping[str, Any], name: str) -> int:
    return int(results.get("n-samples", {}).get(name, {}).get("effective", 0))
