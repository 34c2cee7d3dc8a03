"""Benchmarks side by side: intervals, paired differences, the best, what the gates read, and what changed."""

import pytest

from fusion_core.evaluation.answer_changes import changed_answers
from fusion_core.evaluation.benchmark import BenchmarkItem, BenchmarkResult, Metric, mean_of_items
from fusion_core.evaluation.benchmark_table import tabulate, wilson_interval


def result(model: str, scores: list[float], benchmark: str = "exact_match") -> BenchmarkResult:
    items = tuple(
        BenchmarkItem(
            id=str(n), question=f"question {n}", answer=f"{model} says {score}", expected="1", scores=(score,)
        )
        for n, score in enumerate(scores)
    )
    return BenchmarkResult(
        benchmark=benchmark,
        name="sums",
        model_name=model,
        version="1",
        few_shot=2,
        metrics=(mean_of_items(f"{benchmark}/sums", items),),
        items=items,
    )


def test_wilson_by_hand() -> None:
    # 8 of 10: (0.8 + 0.1921) / 1.3841 -+ 1.96 sqrt(0.016 + 0.0096) / 1.3841.
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(0, 10)[1] > 0.2


def test_differences_are_paired_and_signed() -> None:
    pivot, fused = [0.0, 1.0] * 10, [1.0, 1.0] * 8 + [0.0, 1.0] * 2
    table = tabulate({"pivot": [result("pivot", pivot)], "fused": [result("fused", fused)]}, "pivot")
    assert table is not None
    row = table.rows[1]
    difference = row.differences["exact_match/sums"]
    assert difference.value == pytest.approx(0.4)
    assert difference.is_known_to_differ
    assert table.best("exact_match/sums") == {"fused"}
    assert table.rows[0].differences == {}
    measure = table.measures("fused")["exact_match/sums"]
    assert measure.mean == pytest.approx(0.9)
    assert measure.scale == table.measures("pivot")["exact_match/sums"].scale
    assert "2-shot" in measure.scale
    assert table.measures("nobody") == {}


def test_equal_answers_have_no_interval_of_their_difference() -> None:
    same = [0.0] * 20
    table = tabulate({"pivot": [result("pivot", same)], "fused": [result("fused", same)]}, "pivot")
    assert table is not None
    difference = table.rows[1].differences["exact_match/sums"]
    assert (difference.value, difference.low) == (0.0, None)
    assert table.best("exact_match/sums") == set()
    assert not difference.is_known_to_differ


def test_few_items_have_no_interval() -> None:
    table = tabulate({"pivot": [result("pivot", [1.0, 0.0])]}, "pivot")
    assert table is not None
    assert table.rows[0].means["exact_match/sums"].low is None


def test_a_figure_that_is_no_mean_has_its_standard_error() -> None:
    metric = Metric(name="lm_eval/x.word_perplexity", mean=9.0, n=50, higher_is_better=False, is_mean_of_items=False)
    better = metric.model_copy(update={"mean": 8.0, "standard_error": 0.5})
    plain = {"benchmark": "lm_eval", "name": "x", "version": "2.0", "items": ()}
    table = tabulate(
        {
            "pivot": [BenchmarkResult(model_name="pivot", metrics=(metric,), **plain)],
            "fused": [BenchmarkResult(model_name="fused", metrics=(better,), **plain)],
        },
        "pivot",
    )
    assert table is not None
    assert table.best(metric.name) == {"fused"}
    assert not table.measures("fused")[metric.name].higher_is_better
    mean = table.rows[1].means[metric.name]
    assert (mean.low, mean.high) == (pytest.approx(7.02, abs=1e-3), pytest.approx(8.98, abs=1e-3))


def test_nothing_run_is_no_table() -> None:
    assert tabulate({"pivot": []}, "pivot") is None


def test_answers_gained_and_lost() -> None:
    results = {
        "pivot": [result("pivot", [0.0, 1.0, 1.0, 0.0])],
        "maths": [result("maths", [1.0, 1.0, 1.0, 1.0])],
        "fused": [result("fused", [1.0, 0.0, 1.0, 0.0])],
    }
    changes = changed_answers(results, "fused", "pivot", ["pivot", "maths", "fused"])
    assert changes is not None
    assert (changes.gains, changes.losses) == (1, 1)
    assert changes.gained[0].question == "question 0"
    assert [answer.right for answer in changes.gained[0].answers] == [False, True, True]
    assert changes.lost[0].question == "question 1"
    assert changed_answers({"pivot": results["pivot"]}, "fused", "pivot", ["pivot"]) is None
