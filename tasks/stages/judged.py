"""Both judged benchmarks of a recipe, for one model or for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.models.identity import ResolvedModel
from tasks.addresses import CONTROL, FUSED, ResolvedFusion
from tasks.settings import Settings
from tasks.stages import alpaca_eval, mt_bench
from tasks.stages.judged_data import is_judged, read_alpaca_eval, read_mt_bench
from tasks.store.publication import Artifact, find_artifact
from tasks.store.workplace import Workplace


class JudgedModel(BaseModel):
    """What a judge left of one model: answers and judgments of each benchmark, or nothing."""

    model_config = ConfigDict(frozen=True)

    mt_bench: tuple[Artifact, ...] = ()
    alpaca_eval: tuple[Artifact, ...] = ()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All of them."""
        return (*self.mt_bench, *self.alpaca_eval)


def judge_model(fusion: ResolvedFusion, model: ResolvedModel | Artifact, name: str) -> JudgedModel:
    """Have a model answer the recipe's judged benchmarks, and its answers judged; nothing for a model left out."""
    if not is_judged(fusion, name):
        return JudgedModel()
    return JudgedModel(
        mt_bench=mt_bench.run_mt_bench(fusion, model, name),
        alpaca_eval=alpaca_eval.run_alpaca_eval(fusion, model, name),
    )


def run_judged(
    fusion: ResolvedFusion, model: ResolvedModel | Artifact, name: str, fusion_run: str | None
) -> JudgedModel:
    """Do what ``judge_model`` does, as tasks of a flow."""
    if not is_judged(fusion, name):
        return JudgedModel()
    return JudgedModel(
        mt_bench=mt_bench.run_mt_bench(
            fusion, model, name, fusion_run, answer=mt_bench.answer_task, judge=mt_bench.judge_task
        ),
        alpaca_eval=alpaca_eval.run_alpaca_eval(
            fusion, model, name, fusion_run, answer=alpaca_eval.answer_task, judge=alpaca_eval.judge_task
        ),
    )


def find_judged(
    workplace: Workplace, fusion: ResolvedFusion, model: ResolvedModel | Artifact | str, name: str
) -> JudgedModel:
    """Return what the store holds of a model's answers and judgments."""
    evaluation = fusion.config.evaluation
    found: dict[str, tuple[Artifact, ...]] = {}
    if evaluation.mt_bench is not None and is_judged(fusion, name):
        questions = read_mt_bench(evaluation.mt_bench, workplace.settings)
        found["mt_bench"] = _find(
            workplace,
            mt_bench.answers_address(fusion, model, questions),
            mt_bench.judgments_address(fusion, model, questions),
        )
    if evaluation.alpaca_eval is not None and is_judged(fusion, name):
        instructions = read_alpaca_eval(evaluation.alpaca_eval, workplace.settings)
        found["alpaca_eval"] = _find(
            workplace,
            alpaca_eval.outputs_address(fusion, model, instructions),
            alpaca_eval.annotations_address(fusion, model, instructions),
        )
    return JudgedModel(**found)


def judged_tables(fusion: ResolvedFusion, judged: Mapping[str, JudgedModel]) -> tuple[JudgedTable, ...]:
    """Put the judged scores of all models side by side, a table for each benchmark; needs the pivot's."""
    return (
        *mt_bench.mt_bench_tables(fusion, _with(judged, "mt_bench")),
        *alpaca_eval.alpaca_eval_tables(fusion, _with(judged, "alpaca_eval")),
    )


def copy_judged_files(fusion: ResolvedFusion, judged: Mapping[str, JudgedModel], folder: Path) -> None:
    """Write MT-Bench's answers and judgments into a folder as FastChat's programs expect them."""
    mt_bench.copy_fastchat_files(fusion, _with(judged, "mt_bench"), folder)


def judged_addresses(fusion: ResolvedFusion) -> set[str]:
    """Return where all answers and judgments of a recipe are or will be published."""
    models: dict[str, ResolvedModel | str] = {model.name: model for model in (fusion.pivot, *fusion.sources)}
    models |= {fusion.target_name(group): fusion.target(group) for group in fusion.groups}
    models |= {CONTROL: fusion.target(fusion.groups[0], lm_weight=1.0), FUSED: fusion.merged()}
    settings, evaluation = Settings(), fusion.config.evaluation
    addresses: set[str] = set()
    for name, model in models.items():
        if evaluation.mt_bench is not None and is_judged(fusion, name):
            questions = read_mt_bench(evaluation.mt_bench, settings)
            addresses.add(mt_bench.answers_address(fusion, model, questions))
            addresses.add(mt_bench.judgments_address(fusion, model, questions))
        if evaluation.alpaca_eval is not None and is_judged(fusion, name):
            instructions = read_alpaca_eval(evaluation.alpaca_eval, settings)
            addresses.add(alpaca_eval.outputs_address(fusion, model, instructions))
            addresses.add(alpaca_eval.annotations_address(fusion, model, instructions))
    return addresses


def _find(workplace: Workplace, answers: str, judgments: str) -> tuple[Artifact, ...]:
    found = [find_artifact(workplace.store, address) for address in (answers, judgments)]
    return tuple(artifact for artifact in found if artifact is not None) if all(found) else ()


def _with(judged: Mapping[str, JudgedModel], benchmark: str) -> dict[str, tuple[Artifact, ...]]:
    return {name: made for name, one in judged.items() if (made := getattr(one, benchmark))}
