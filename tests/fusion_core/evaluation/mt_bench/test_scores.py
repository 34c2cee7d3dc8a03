"""Scores of judgments: means, intervals and differences against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_core.evaluation.judged_means import JudgedAnswer, JudgedMeans
from fusion_core.evaluation.judged_scores import Judge, JudgedDifference, JudgedTable

CATEGORIES = ("writing", "math", "stem")


def random_answers(shift: float, seed: int) -> list[JudgedAnswer]:
    draw = np.random.default_rng(seed)
    hard = np.random.default_rng(0).normal(5.0, 2.0, 24)
    return [
        JudgedAnswer(question, CATEGORIES[question % 3], turn, (float(hard[question] + shift + draw.normal(0, 0.3)),))
        for question in range(24)
        for turn in (1, 2)
    ]


def test_means_and_intervals_equal_a_bootstrap_written_out() -> None:
    answers = random_answers(0.0, 1)
    found = JudgedMeans({"a": answers}, resamples=4000, seed=3).mean("a")
    values = {(one.question_id, one.turn): one.values[0] for one in answers}
    assert found.mean == pytest.approx(np.mean(list(values.values())))
    draw = np.random.default_rng(9)
    means = []
    for _ in range(4000):
        chosen = [
            question
            for category in range(3)
            for question in draw.choice([q for q in range(24) if q % 3 == category], 8)
        ]
        means.append(np.mean([values[question, turn] for question in chosen for turn in (1, 2)]))
    low, high = np.quantile(means, [0.025, 0.975])
    # Two bootstraps of 4,000 draws agree to a few hundredths of the spread.
    assert found.low == pytest.approx(low, abs=0.06) and found.high == pytest.approx(high, abs=0.06)


def test_differences_are_paired_so_that_hard_questions_cancel() -> None:
    answers = {"pivot": random_answers(0.0, 1), "fused": random_answers(0.5, 2)}
    means = JudgedMeans(answers, resamples=2000, seed=0)
    difference = means.difference("fused", "pivot")
    assert difference.difference == pytest.approx(means.mean("fused").mean - means.mean("pivot").mean)
    assert not difference.within_noise and difference.low > 0.2
    own = means.mean("fused")
    assert difference.high - difference.low < 0.4 * (own.high - own.low)


def test_answers_without_a_judgment_of_either_model_stay_out_of_the_difference() -> None:
    pivot = random_answers(0.0, 1)
    fused = [
        JudgedAnswer(one.question_id, one.category, one.turn, (), 1)
        if one.question_id < 6
        else JudgedAnswer(one.question_id, one.category, one.turn, (one.values[0] + 1.0,))
        for one in pivot
    ]
    means = JudgedMeans({"pivot": pivot, "fused": fused}, resamples=200, seed=0)
    assert means.difference("fused", "pivot").difference == pytest.approx(1.0)
    assert (means.mean("fused").n, means.mean("fused").missing) == (36, 12)


def test_below_five_questions_there_is_no_interval_and_nothing_is_beyond_noise() -> None:
    answers = {
        name: [JudgedAnswer(question, "math", 1, (value,)) for question in range(4)]
        for name, value in (("a", 9.0), ("b", 1.0))
    }
    means = JudgedMeans(answers, resamples=100, seed=0)
    assert means.mean("a").low is None
    assert means.difference("a", "b").difference == 8.0 and means.difference("a", "b").within_noise


def test_no_judgment_at_all_is_no_zero() -> None:
    means = JudgedMeans({"a": [JudgedAnswer(1, "math", 1, (), 3)]}, resamples=100, seed=0)
    found = means.mean("a")
    assert (found.mean, found.low, found.n, found.missing) == (None, None, 0, 3)


@pytest.mark.parametrize(
    ("low", "high", "noise"), [(-0.1, 0.3, True), (0.1, 0.3, False), (-0.3, -0.1, False), (None, None, True)]
)
def test_within_noise(low, high, noise) -> None:
    assert JudgedDifference(difference=0.1, low=low, high=high).within_noise is noise


def test_a_table_comes_back_from_its_json() -> None:
    table = JudgedTable(
        benchmark="mt_bench",
        benchmark_digest="d",
        questions=0,
        judge=Judge(model="j", endpoint="h"),
        baseline="a",
        rows=(),
        resamples=10,
    )
    assert JudgedTable.model_validate_json(table.model_dump_json()) == table
