"""MT-Bench on the command line: data, answers of a checkpoint and of a server, ratings, comparisons."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.command_line import main
from tests.fusion_core.evaluation.chat_server import chat_server
from tests.fusion_core.evaluation.mt_bench.conftest import SAMPLE
from tests.fusion_core.evaluation.mt_bench.fastchat import show_pairwise, show_single

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the command line and gives exit status, standard output and standard error."""
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAMPLE, tmp_path / "home" / "benchmarks" / "mt_bench")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fuseline", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def test_from_answers_to_a_table(run: Run, tmp_path: Path) -> None:
    def answer(body, number):
        prompt = body["messages"][-1]["content"]
        if "Compare" in body["messages"][0]["content"]:
            return "[[C]]"
        return "Rating: [[7]]" if "A1:" in prompt or "\nA: " in prompt else "an answer"

    with chat_server(answer) as server:
        status, out, _ = run("mt-bench", "answer", "served", "--endpoint", server.url, "--served-as", "m", "--seed", 3)
        assert status == 0 and "model_answer/served.jsonl" in out
        assert {body["model"] for body in server.requests} == {"m"} and len(server.requests) == 8
        shutil.copy(SAMPLE / "model_answer" / "alpha.jsonl", "model_answer")
        arguments = ("mt-bench", "judge", "model_answer/alpha.jsonl", "model_answer/served.jsonl")
        judge = ("--judge", "judge", "--endpoint", server.url)
        status, out, _ = run(*arguments, *judge)
        assert status == 0 and "7.00" in out and "within noise" in out and "16 calls" in out
        asked = len(server.requests)
        status, out, _ = run(*arguments, *judge)
        assert status == 0 and "0 calls" in out and len(server.requests) == asked
        status, out, _ = run("mt-bench", "compare", "model_answer/served.jsonl", "model_answer/alpha.jsonl", *judge)
        assert status == 0 and "mt_bench_pairwise/win_rate" in out
    assert show_single(tmp_path / "model_judgment" / "judge_single.jsonl")["overall"].to_dict() == {
        "alpha": 7.0,
        "served": 7.0,
    }
    assert show_pairwise(tmp_path / "model_judgment" / "judge_pair.jsonl", "alpha").loc["served", "tie"] == 8


def test_fastchats_judgments_are_shown_with_published_scores_only_beside_their_judge(run: Run) -> None:
    status, out, _ = run("mt-bench", "show", SAMPLE / "model_judgment" / "gpt-4_single.jsonl", "--published")
    assert status == 0
    assert "mt_bench/overall" in out and "(1 missing)" in out
    assert "8.22  FuseChat-7B-VaRM" in out and "do not compare" in out


def test_data_are_checked_against_their_digests(run: Run, shared_folder: Path, tmp_path: Path) -> None:
    source = shared_folder / "data" / "mt_bench"
    status, _, _ = run("data", "mt-bench", "--from", source, "--to", tmp_path / "data")
    assert (
        status == 0 and (tmp_path / "data" / "question.jsonl").read_bytes() == (source / "question.jsonl").read_bytes()
    )
    status, _, err = run("data", "mt-bench", "--from", SAMPLE, "--to", tmp_path / "other")
    assert status == 2 and "question.jsonl" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mt-bench", "answer", "name"), "exactly one of --path, --hub and --endpoint"),
        (("mt-bench", "judge", "nowhere.jsonl", "--endpoint", "http://127.0.0.1:9/v1"), "nowhere.jsonl cannot be read"),
        (("mt-bench", "judge", "a.jsonl", "--endpoint", "localhost"), "expected an address"),
        (("mt-bench", "show", SAMPLE / "model_judgment" / "gpt-4_single.jsonl", "--baseline", "x"), "judgments of 'x'"),
        (("mt-bench", "show", SAMPLE / "question.jsonl"), "Line 1 of"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments, said: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2 and said in err and len(err.strip().splitlines()) == 1
