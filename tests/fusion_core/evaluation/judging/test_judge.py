"""The judge: asked again, resumed, counted; and what a kill leaves of its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from fusion_core.errors import EndpointError, EvaluationError
from fusion_core.evaluation.judging import ChatClient, Endpoint, JudgeModel, JudgeSettings, Reply, ReplyLog
from fusion_core.evaluation.judging.ratings import read_rating, read_verdict
from tests.fusion_core.evaluation.chat_server import chat_server

REPOSITORY = Path(__file__).resolve().parents[4]


def judge_of(url: str, log: Path, **settings) -> JudgeModel:
    endpoint = Endpoint("judge", url, "TEST_JUDGE_KEY", retries=1, first_wait_seconds=0.01, timeout_seconds=5.0)
    return JudgeModel(ChatClient(endpoint), ReplyLog(log), JudgeSettings(**settings))


def rate(reply: Reply) -> float | None:
    return read_rating(reply.text)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: [[5]]", 5),
        ("Rating: [[7.5]] of 10", 7.5),
        ("first [[3]], then [[9]]", 3),
        ("only [8] once", 8),
        ("see [1], Rating: [[6]]", 6),
        ("Rating: [[10]]", 10),
        ("Rating: [[11]]", None),
        ("Rating: [[0]]", None),
        (f"Rating: [[{'9' * 5000}]]", None),
        ("Rating: [[-3]]", None),
        ("Rating: 7/10", None),
        ("Rating: [[rating]]", None),
        ("", None),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them_within_the_scale(reply: str, rating: float | None) -> None:
    assert read_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "verdict"), [("[[A]]", "A"), ("so [[B]] it is", "B"), ("[[C]]", "tie"), ("[A]", None), ("", None)]
)
def test_verdicts(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize("useless", ["no rating in here", "Rating: [[11]]"])
def test_a_reply_without_a_rating_is_asked_for_again(useless: str, tmp_path: Path) -> None:
    with chat_server(lambda body, number: useless if number < 2 else "better [[4]]") as server:
        judge = judge_of(server.url, tmp_path / "log.jsonl")
        judged = judge.ask(question("good?"), rate, "rate it")
    assert (judged.value, judged.text, judged.attempts) == (4, "better [[4]]", 3)
    # Word for word the same would come back to the same question at temperature 0.
    assert [one["temperature"] for one in server.requests] == [0.0, 0.5, 0.5]
    assert [len(one["messages"]) for one in server.requests] == [1, 3, 3]
    assert [one["content"] for one in server.requests[1]["messages"]] == ["good?", useless, "rate it"]
    assert judge.costs.calls == 3


def test_a_judgment_that_never_comes_is_none_and_is_not_paid_for_again(tmp_path: Path) -> None:
    with chat_server(lambda body, number: "I cannot say") as server:
        for _ in range(2):
            judge = judge_of(server.url, tmp_path / "log.jsonl", attempts=2)
            judged = judge.ask(question("good?"), rate, "rate it")
            assert (judged.value, judged.text) == (None, "I cannot say")
    assert len(server.requests) == 2
    assert (judge.costs.calls, judge.costs.reused) == (0, 2)


def test_repeated_judgments_are_separate_requests(tmp_path: Path) -> None:
    with chat_server(lambda body, number: f"[[{number + 1}]]") as server:
        judge = judge_of(server.url, tmp_path / "log.jsonl", temperature=0.8)
        values = [judge.ask(question("good?"), rate, "rate it", sample).value for sample in (0, 1, 2, 1)]
    assert values == [1, 2, 3, 2]
    assert len({one["seed"] for one in server.requests}) == 3


def test_a_refused_request_is_missing_and_the_rest_goes_on(tmp_path: Path) -> None:
    with chat_server(lambda body, number: 400 if "bad" in body["messages"][0]["content"] else "[[6]]") as server:
        judge = judge_of(server.url, tmp_path / "log.jsonl", concurrency=2)
        texts = ["fine", "bad", "fine too"]
        judged = judge.ask_all(texts, lambda text: judge.ask(question(text), rate, "rate it"))
    assert [one.value for one in judged] == [6, None, 6]
    assert judged[1].text == "$ERROR$"


def test_an_endpoint_that_refuses_everything_is_an_error(tmp_path: Path) -> None:
    with chat_server(lambda body, number: 422) as server, pytest.raises(EvaluationError, match="refuses every request"):
        judge = judge_of(server.url, tmp_path / "log.jsonl")
        judge.ask_all(["a", "b"], lambda text: judge.ask(question(text), rate, "rate it"))


def test_after_a_failure_nothing_new_is_asked_and_what_came_is_kept(tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(40)]
    with chat_server(lambda body, number: 401 if number >= 5 else "[[5]]") as server:
        judge = judge_of(server.url, tmp_path / "log.jsonl", concurrency=2)
        with pytest.raises(EndpointError):
            judge.ask_all(texts, lambda text: judge.ask(question(text), rate, "rate it"))
        assert len(server.requests) < 12
        server.answer = lambda body, number: "[[5]]"
        asked = len(server.requests)
        again = judge_of(server.url, tmp_path / "log.jsonl", concurrency=2)
        judged = again.ask_all(texts, lambda text: again.ask(question(text), rate, "rate it"))
        assert {one.value for one in judged} == {5}
        assert again.costs.reused == 5
        assert len(server.requests) - asked == 35


def test_requests_run_at_once_as_many_as_allowed(tmp_path: Path) -> None:
    # Three answers at a time: with fewer requests at once none would come.
    three = threading.Barrier(3, timeout=30)

    def answer(body: dict, number: int) -> str:
        three.wait()
        return "[[5]]"

    with chat_server(answer) as server:
        judge = judge_of(server.url, tmp_path / "log.jsonl", concurrency=3)
        judge.ask_all([str(index) for index in range(30)], lambda text: judge.ask(question(text), rate, "rate it"))
    assert server.most_at_once == 3
    assert judge.costs.calls == 30 and judge.costs.completion_tokens == 30


def test_a_line_that_a_kill_cut_short_is_dropped_and_what_follows_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with chat_server(lambda body, number: "[[5]]") as server:
        judge = judge_of(server.url, log)
        for text in ("a", "b"):
            judge.ask(question(text), rate, "rate it")
        log.write_bytes(log.read_bytes()[:-20])
        judge = judge_of(server.url, log)
        for text in ("a", "b"):
            judge.ask(question(text), rate, "rate it")
    assert len(server.requests) == 3
    assert len(ReplyLog(log)) == 2


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(EvaluationError, match="Line 1 of"):
        ReplyLog(tmp_path / "log.jsonl")


def test_kill_9_while_judging_loses_no_reply_that_arrived(tmp_path: Path) -> None:
    """A process that is killed mid-way has kept every reply but those under way."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.fusion_core.evaluation.judging.test_judge import judge_of, question, rate
        judge = judge_of(sys.argv[1], Path(sys.argv[2]), concurrency=1)
        judge.ask_all(range(50), lambda number: judge.ask(question(f"text {number}"), rate, "rate it"))
        """
    )
    killed: list[int] = []

    def answer(body, number):
        if number == 7:
            os.kill(process.pid, signal.SIGKILL)
            killed.append(number)
        return "[[5]]"

    with chat_server(answer) as server:
        log = tmp_path / "log.jsonl"
        process = subprocess.Popen([sys.executable, "-c", program, server.url, str(log)], cwd=REPOSITORY)
        assert process.wait(60) == -signal.SIGKILL
        assert killed and len(ReplyLog(log)) == 7
        judge = judge_of(server.url, log)
        for number in range(10):
            judge.ask(question(f"text {number}"), rate, "rate it")
        assert judge.costs.reused == 7 and judge.costs.calls == 3
