"""How many questions the models answer right: GSM8K's by exact match, MBPP's and HumanEval's by pass@1.

    python -m experiments.answers --data CORPORA --items 25

CORPORA holds `gsm8k/test.jsonl`, `mbpp/mbpp.jsonl` and `humaneval/HumanEval.jsonl.gz` as their makers publish them.
The models are six of table 1's, without targets and soups; the product asks, runs and scores
(`fusion_core.evaluation`), greedily and without worked examples.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.lab import Entry, Lab, load_lab_recipe
from experiments.logged import logged_table, one_sentence, write
from experiments.run import RESULTS
from experiments.tables import FUSED, JOINT, PIVOT, SFT
from fusion_core.evaluation.benchmarks import Subject, benchmarks_of
from fusion_core.models.identity import ResolvedModel
from fusion_core.record import Record
from tasks.addresses import ResolvedFusion
from tasks.code_version import code_version
from tasks.stages.benchmarks import read_result, score_benchmark
from tasks.stages.evaluate import as_model
from tasks.store.publication import Artifact
from tasks.store.workplace import computed_by

NAME = "answers"
MODELS = (
    Entry(PIVOT, "pivot"),
    Entry("source maths", "maths"),
    Entry("source dialogue", "dialogue"),
    Entry(SFT, "plain-sft"),
    Entry(JOINT, "fused", {"strategy": "joint"}),
    Entry(FUSED, "fused"),
)


class AnswersRow(Record):
    """One model on one benchmark: how many of how many questions were answered right, and how many cut off."""

    label: str
    metric: str
    right: int
    items: int
    unfinished: int
    run: str


class AnswersResults(Record):
    """All models on all benchmarks."""

    rows: tuple[AnswersRow, ...]
    seed: int
    code: str


def settings(corpora: Path, items: int) -> dict[str, Any]:
    """What the recipe is changed to, to ask."""
    corpora = corpora.resolve()
    maths = {"name": "gsm8k", "path": str(corpora / "gsm8k/test.jsonl"), "limit": items, "max_new_tokens": 200}
    code = [
        {"name": "mbpp", "path": str(corpora / "mbpp/mbpp.jsonl"), "skip": 10, "limit": items, "max_new_tokens": 160},
        {
            "name": "humaneval",
            "path": str(corpora / "humaneval/HumanEval.jsonl.gz"),
            "limit": items,
            "max_new_tokens": 200,
        },
    ]
    return {"evaluation.exact_match": [maths], "evaluation.pass_at_1": code}


def measure(lab: Lab, corpora: Path, items: int, seed: int) -> AnswersResults:
    """Ask every model."""
    rows = []
    for entry in MODELS:
        fusion = lab.resolve({**entry.settings, **settings(corpora, items)}, seed)
        given = {model.name: model for model in (fusion.pivot, *fusion.sources)}
        subject = given.get(entry.model) or lab.checkpoint(entry, seed).make()
        for artifact in asked(lab, fusion, subject, entry.label):
            found = read_result(lab.workplace, artifact, entry.label)
            (metric,) = (one for one in found.metrics if one.mean is not None)
            rows.append(
                AnswersRow(
                    label=entry.label,
                    metric=metric.name,
                    right=round((metric.mean or 0.0) * metric.n),
                    items=metric.n,
                    unfinished=found.unfinished,
                    run=computed_by(artifact),
                )
            )
            print(rows[-1], flush=True)
    return AnswersResults(rows=tuple(rows), seed=seed, code=str(code_version()))


def asked(lab: Lab, fusion: ResolvedFusion, model: ResolvedModel | Artifact, name: str) -> list[Artifact]:
    """Ask one model all questions, each benchmark under a run of MLflow."""

    def find() -> ResolvedModel:
        return model if isinstance(model, ResolvedModel) else as_model(lab.workplace, fusion, model, name)

    subject = Subject(find, fusion.config.evaluation.batch_tokens)
    try:
        return [
            score_benchmark(fusion, model, name, benchmark, subject, lab.run)
            for benchmark in benchmarks_of(fusion.config.evaluation)
        ]
    finally:
        subject.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the benchmarks' data")
    parser.add_argument("--items", type=int, default=25, help="questions of each benchmark, from its start")
    parser.add_argument("--seed", type=int, default=0, help="training.seed of the trained models")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    arguments = parser.parse_args()
    recipe = load_lab_recipe("held_out")
    with one_sentence(), logged_table(recipe, NAME) as run:
        results = measure(Lab(recipe, run), arguments.data, arguments.items, arguments.seed)
    write(results, arguments.out, NAME)


if __name__ == "__main__":
    main()
