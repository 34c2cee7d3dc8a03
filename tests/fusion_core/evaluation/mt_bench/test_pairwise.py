"""Comparison with a baseline in both orders."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.evaluation.jsonl import write_jsonl
from fusion_core.evaluation.judged_scores import Judge
from fusion_core.evaluation.mt_bench import Answer, judge_pairs, read_answers, score_pairs
from fusion_core.evaluation.mt_bench.pairwise import final_winner
from tests.fusion_core.evaluation.chat_server import chat_server
from tests.fusion_core.evaluation.mt_bench.fastchat import show_pairwise


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ("model_1", "model_1", "model_1"),
        ("model_2", "model_2", "model_2"),
        ("model_1", "model_2", "tie"),
        ("tie", "tie", "tie"),
        ("tie", "model_1", "tie"),
        ("error", "model_1", "error"),
        ("model_2", "error", "error"),
    ],
)
def test_only_a_winner_of_both_orders_wins(first, second, winner) -> None:
    assert final_winner(first, second) == winner


def test_a_position_biased_judge_finds_ties_and_a_consistent_one_winners(
    benchmark_data, sample, judge_at, tmp_path: Path
) -> None:
    """Writing: always [[A]]; reasoning: the model is better; maths: the baseline; extraction: no verdict at all."""
    answers = read_answers(sample / "model_answer" / "alpha.jsonl", benchmark_data)
    theirs = [Answer(one.question_id, ("other", "another"), (True, True)) for one in answers]

    def answer(body, number):
        prompt = body["messages"][1]["content"]
        mine_first = "A: other" not in prompt and "A1: other" not in prompt
        if "rain" in prompt:
            return "[[A]]"
        if "runner" in prompt:
            return "[[A]]" if mine_first else "[[B]]"
        if "6 times 7" in prompt:
            return "[[B]]" if mine_first else "[[A]]"
        return "cannot say"

    with chat_server(answer) as server:
        judge = judge_at(server.url, attempts=2)
        rows = judge_pairs(benchmark_data, "alpha", answers, "base", theirs, judge)
    assert [(row["g1_winner"], row["g2_winner"]) for row in rows[::2]] == [
        ("model_1", "model_2"),
        ("model_1", "model_1"),
        ("model_2", "model_2"),
        ("error", "error"),
    ]
    # Maths and reasoning are compared with the reference in view.
    assert {row["judge"][1] for row in rows if row["question_id"] in (101, 111)} == {
        "pair-math-v1",
        "pair-math-v1-multi-turn",
    }
    path = tmp_path / "gpt-4_pair.jsonl"
    write_jsonl(path, rows)
    counts = show_pairwise(path, "base").loc["alpha"]
    assert (counts["win"], counts["loss"], counts["tie"]) == (2, 2, 2)
    means = score_pairs(benchmark_data, {"alpha": rows}, Judge(model="gpt-4", endpoint="h"), "base").row("alpha").means
    assert means["mt_bench_pairwise/win_rate"].mean == pytest.approx(100 * counts["win_rate_adjusted"])
    assert means["mt_bench_pairwise/ties"].mean == pytest.approx(100 / 3)
    assert means["mt_bench_pairwise/win_rate"].missing == 2
    assert means["mt_bench_pairwise/reasoning"].mean == 100.0
    assert means["mt_bench_pairwise/extraction"].mean is None
