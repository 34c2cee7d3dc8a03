"""Single-answer grading end to end against a real HTTP server, and FastChat's files in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.jsonl import read_jsonl, write_jsonl
from fusion_core.evaluation.judged_scores import Judge
from fusion_core.evaluation.mt_bench import judge_answers, read_answers, read_judgments, score_ratings, write_answers
from tests.fusion_core.evaluation.chat_server import HALF_BODY, HANG, chat_server
from tests.fusion_core.evaluation.mt_bench.fastchat import load_model_answers, load_single_judgments, show_single

JUDGE = Judge(model="gpt-4", endpoint="localhost")


def test_fastchats_own_judgments_are_read_and_their_means_are_those_of_show_result(benchmark_data, sample) -> None:
    path = sample / "model_judgment" / "gpt-4_single.jsonl"
    table = score_ratings(benchmark_data, {"alpha": read_jsonl(path)}, JUDGE, "alpha")
    shown = show_single(path)
    for name in ("overall", "turn_1", "turn_2"):
        assert table.row("alpha").means[f"mt_bench/{name}"].mean == pytest.approx(shown[name]["alpha"])
    overall = table.row("alpha").means["mt_bench/overall"]
    assert (overall.n, overall.missing) == (7, 1)
    # By hand: reasoning has the 2 of its first turn alone; the other has no rating.
    assert table.row("alpha").means["mt_bench/reasoning"].mean == 2.0
    assert table.row("alpha").means["mt_bench/writing"].mean == 7.75


def test_our_judgments_are_read_by_fastchat(benchmark_data, sample, judge_at, tmp_path: Path) -> None:
    answers = read_answers(sample / "model_answer" / "alpha.jsonl", benchmark_data)
    replies = {"Q: What is 6 times 7?": "no idea", "Q: Name the colour": "Rating: [[11]]"}

    def answer(body, number):
        prompt = body["messages"][1]["content"]
        return next((reply for start, reply in replies.items() if start in prompt), "Rating: [[6.5]]")

    with chat_server(answer) as server:
        judge = judge_at(server.url, attempts=2)
        rows = judge_answers(benchmark_data, "alpha", answers, judge)
    path = tmp_path / "model_judgment" / "gpt-4_single.jsonl"
    write_jsonl(path, rows)
    shown = show_single(path)
    assert shown["overall"]["alpha"] == pytest.approx(6.5)
    loaded = load_single_judgments(path)
    assert set(loaded) == {("gpt-4", one) for one in _SINGLE_PROMPTS}
    assert loaded[("gpt-4", "single-math-v1")][(111, "alpha")] == {"score": -1, "judgment": "no idea"}
    # Every key that FastChat writes is there, and in its order.
    theirs = read_jsonl(sample / "model_judgment" / "gpt-4_single.jsonl")
    for mine, their in zip(rows, theirs, strict=True):
        assert list(mine)[: len(their)] == list(their)
        assert mine["user_prompt"] == their["user_prompt"]
        assert mine["judge"] == their["judge"]
    table = score_ratings(benchmark_data, {"alpha": rows}, JUDGE, "alpha", costs=judge.costs)
    assert table.row("alpha").means["mt_bench/overall"].missing == 2
    # Six replies at once, two asked for twice.
    assert table.costs.calls == 10


_SINGLE_PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


def test_judgments_that_fastchat_made_are_not_paid_for_again(benchmark_data, sample, judge_at) -> None:
    answers = read_answers(sample / "model_answer" / "alpha.jsonl", benchmark_data)
    known = read_jsonl(sample / "model_judgment" / "gpt-4_single.jsonl")
    with chat_server(lambda body, number: "Rating: [[3]]") as server:
        rows = judge_answers(benchmark_data, "alpha", answers, judge_at(server.url), known=known)
    # The one without a rating is asked for again.
    assert len(server.requests) == 1
    assert [row["score"] for row in rows] == [7, 8.5, 2, 3, 10, 9, 6, 5]


def test_answers_go_to_fastchat_and_back(benchmark_data, sample, tmp_path: Path) -> None:
    answers = read_answers(sample / "model_answer" / "alpha.jsonl", benchmark_data)
    write_answers(tmp_path / "model_answer" / "beta.jsonl", "beta", answers)
    assert read_answers(tmp_path / "model_answer" / "beta.jsonl", benchmark_data) == answers
    loaded = load_model_answers(tmp_path / "model_answer")["beta"]
    theirs = load_model_answers(sample / "model_answer")["alpha"]
    for question_id, row in loaded.items():
        assert row["choices"] == theirs[question_id]["choices"]
        assert list(row)[:5] == list(theirs[question_id])


def test_faults_of_the_endpoint_leave_no_trace_in_the_scores(benchmark_data, sample, judge_at) -> None:
    """Eight judgments over 429, 500, a time-out, half a reply, no rating and a rating of 11, each once."""
    answers = read_answers(sample / "model_answer" / "alpha.jsonl", benchmark_data)
    faults = {0: 429, 2: 500, 4: HANG, 6: HALF_BODY, 8: "no rating", 10: "Rating: [[11]]"}
    with chat_server(lambda body, number: faults.get(number, "Rating: [[4]]")) as server:
        judge = judge_at(server.url, timeout_seconds=0.5, concurrency=1)
        rows = judge_answers(benchmark_data, "alpha", answers, judge)
    assert [row["score"] for row in rows] == [4] * 8
    assert judge.costs.retries == 4 and judge.costs.calls == 10
    means = score_ratings(benchmark_data, {"alpha": rows}, JUDGE, "alpha").row("alpha").means
    assert means["mt_bench/overall"].missing == 0


def test_several_judgments_weigh_an_answer_once_and_narrow_nothing_away(benchmark_data, sample, judge_at) -> None:
    answers = read_answers(sample / "model_answer" / "alpha.jsonl", benchmark_data)
    with chat_server(lambda body, number: f"[[{body['seed'] // 3 + 2}]]" if "seed" in body else "[[9]]") as server:
        judge = judge_at(server.url, temperature=0.7)
        rows = judge_answers(benchmark_data, "alpha", answers, judge, judgments=3)
    assert len(server.requests) == 24
    assert sorted(row["score"] for row in rows if (row["question_id"], row["turn"]) == (81, 2)) == [2, 3, 4]
    three = Judge(model="gpt-4", endpoint="localhost", temperature=0.7, judgments=3)
    # Two of three judgments of one answer are lost: its weight stays that of one answer.
    lost = [{**row, "score": -1} if row["question_id"] == 81 and row["sample"] > 0 else row for row in rows]
    mean = score_ratings(benchmark_data, {"alpha": lost}, three, "alpha").row("alpha").means["mt_bench/writing"]
    assert (mean.mean, mean.n, mean.missing) == (2.0, 2, 4)
    overall = score_ratings(benchmark_data, {"alpha": lost}, three, "alpha").row("alpha").means["mt_bench/overall"]
    assert overall.mean == pytest.approx((2 * 2.0 + 6 * 3.0) / 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("judge", "gpt-4"),
        ("judge", [["a"], "b"]),
        ("score", "x"),
        ("score", None),
        ("turn", "x"),
        ("question_id", "x"),
        ("model", ["x"]),
        ("sample", "x"),
    ],
)
def test_a_judgment_of_another_format_is_named(field: str, value: object, sample, tmp_path: Path) -> None:
    rows = read_jsonl(sample / "model_judgment" / "gpt-4_single.jsonl")
    path = tmp_path / "ratings.jsonl"
    write_jsonl(path, [rows[0], {**rows[1], field: value}])
    with pytest.raises(EvaluationError, match=f"judgment 2 has .* for '{field}'"):
        read_judgments(path)


def test_a_rating_outside_the_scale_is_missing(benchmark_data, sample) -> None:
    rows = read_judgments(sample / "model_judgment" / "gpt-4_single.jsonl")
    odd = [{**rows[0], "score": score} for score in (1000, 0, float("nan"))]
    table = score_ratings(benchmark_data, {"alpha": [*odd, *rows[1:]]}, JUDGE, "alpha")
    assert table.row("alpha").means["mt_bench/overall"].missing == 2
