"""AlpacaEval's files, its judge's preferences and its win rates against a real HTTP server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.alpaca_eval import (
    answer_instructions,
    judge_outputs,
    load_alpaca_eval,
    probability_of_first,
    read_outputs,
)
from fusion_core.evaluation.alpaca_scores import score_annotations
from fusion_core.evaluation.generation import Generation, Sampling
from fusion_core.evaluation.judged_scores import Judge
from fusion_core.evaluation.judging import ChatClient, Endpoint, JudgeModel, JudgeSettings, Reply, ReplyLog
from tests.fusion_core.evaluation.chat_server import chat_server, completion

PROMPT = """<|im_start|>system
Choose.
<|im_end|>
<|im_start|>user
{ "instruction": "{instruction}" }
m: {output_1}
M: {output_2}
<|im_end|>
"""
JUDGE = Judge(model="judge", endpoint="h")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"do {index}", "output": f"base {{output_2}} {index}", "generator": "gpt4", "dataset": "d"}
        for index in range(40)
    ]
    (tmp_path / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    (tmp_path / "alpaca_eval_clf.txt").write_text(PROMPT)
    return tmp_path


class Terse:
    name = "terse"

    def generate(self, conversations, sampling, progress):
        return [Generation("mine", True, 1, 1) for _ in conversations]


def with_probabilities(body, first: float):
    answer = completion("m" if first >= 0.5 else "M", body)
    likeliest = [{"token": "m", "logprob": math.log(first)}, {"token": "M", "logprob": math.log(1 - first)}]
    content = [{"token": "m", "logprob": math.log(first), "top_logprobs": likeliest}]
    answer["choices"][0]["logprobs"] = {"content": content}
    return 200, answer, {}


def judge_at(url: str, folder: Path, **settings) -> JudgeModel:
    client = ChatClient(Endpoint("judge", url, "TEST_JUDGE_KEY", retries=1, first_wait_seconds=0.01))
    return JudgeModel(
        client, ReplyLog(folder / "replies.jsonl"), JudgeSettings(max_tokens=1, top_logprobs=5, **settings)
    )


def test_preferences_are_probabilities_that_follow_the_answer_and_not_its_place(folder: Path) -> None:
    benchmark = load_alpaca_eval(folder)
    outputs = answer_instructions(Terse(), benchmark, Sampling())

    def answer(body, number):
        mine_first = "m: mine" in body["messages"][-1]["content"]
        return with_probabilities(body, 0.8 if mine_first else 0.2)

    with chat_server(answer) as server:
        rows = judge_outputs(benchmark, "terse", outputs, judge_at(server.url, folder))
    assert [row["preference"] for row in rows] == pytest.approx([1.8] * 40)
    places = {"m: mine" in body["messages"][-1]["content"] for body in server.requests}
    assert places == {True, False}
    assert all(body["logprobs"] and body["top_logprobs"] == 5 and body["max_tokens"] == 1 for body in server.requests)
    table = score_annotations(benchmark, {"terse": rows}, JUDGE)
    assert table.row("terse").means["alpaca_eval/win_rate"].mean == pytest.approx(80.0)
    assert table.baseline == "gpt4"
    # Without alpaca_eval's own regression data there is no length control to speak of.
    assert table.metrics == ("alpaca_eval/win_rate",)
    # As alpaca_eval's pairwise_to_winrate counts: the mean of the preferences, less one.
    assert set(rows[0]) >= {
        "instruction",
        "output_1",
        "output_2",
        "generator_1",
        "generator_2",
        "preference",
        "annotator",
    }


def test_an_endpoint_without_probabilities_counts_by_the_letter_it_writes(folder: Path) -> None:
    benchmark = load_alpaca_eval(folder, 6)
    outputs = answer_instructions(Terse(), benchmark, Sampling())
    with chat_server(lambda body, number: "m" if "m: mine" in body["messages"][-1]["content"] else " M") as server:
        rows = judge_outputs(benchmark, "terse", outputs, judge_at(server.url, folder))
    assert [row["preference"] for row in rows] == [2.0] * 6


def test_a_judge_that_names_neither_is_asked_again_and_then_missing(folder: Path) -> None:
    benchmark = load_alpaca_eval(folder, 8)
    outputs = answer_instructions(Terse(), benchmark, Sampling())
    with chat_server(lambda body, number: "?" if "do 3" in body["messages"][1]["content"] else "m") as server:
        rows = judge_outputs(benchmark, "terse", outputs, judge_at(server.url, folder, attempts=2))
    assert rows[3]["preference"] is None and len(server.requests) == 9
    found = score_annotations(benchmark, {"terse": rows}, JUDGE).row("terse").means["alpaca_eval/win_rate"]
    assert (found.n, found.missing) == (7, 1)


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        (Reply("m", True, 1, 1, {"m": math.log(0.6), "M": math.log(0.2), "x": math.log(0.2)}), 0.75),
        (Reply("x", True, 1, 1, {"M": math.log(0.3)}), 0.0),
        (Reply("x", True, 1, 1, {"x": 0.0, "m": -9999.0, "M": -9999.0}), 0.5),
        (Reply("x", True, 1, 1, {"m": -9999.0, "M": -1.0}), 0.0),
        (Reply("Model", True, 1, 1, {"x": -0.1}), 0.0),
        (Reply("", True, 1, 1), None),
        (Reply("neither", True, 1, 1), None),
    ],
)
def test_the_first_tokens_probabilities_come_before_the_text(reply: Reply, share: float | None) -> None:
    assert probability_of_first(reply) == (share if share is None else pytest.approx(share))


def test_braces_in_answers_and_prompt_are_left_alone(folder: Path) -> None:
    messages = load_alpaca_eval(folder).messages("use {output_1}", "a {instruction}", "b")
    assert messages[0] == {"role": "system", "content": "Choose."}
    assert messages[1]["content"] == '{ "instruction": "use {output_1}" }\nm: a {instruction}\nM: b'


def test_outputs_in_alpaca_evals_format_come_back(folder: Path, tmp_path: Path) -> None:
    benchmark = load_alpaca_eval(folder, 3)
    outputs = answer_instructions(Terse(), benchmark, Sampling())
    (tmp_path / "outputs.json").write_text(json.dumps(outputs))
    assert read_outputs(tmp_path / "outputs.json") == outputs
    other = [{**row, "instruction": "else"} for row in outputs]
    with pytest.raises(EvaluationError, match="other instructions"):
        judge_outputs(benchmark, "terse", other, judge_at("http://127.0.0.1:9", folder))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("alpaca_eval_gpt4_baseline.json", "{", "cannot be read"),
        ("alpaca_eval_gpt4_baseline.json", "[]", "is no list"),
        ("alpaca_eval_gpt4_baseline.json", '[{"instruction": "a"}]', "entry 0"),
        ("alpaca_eval_clf.txt", "no marks {instruction}", "im_start"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(EvaluationError, match=said):
        load_alpaca_eval(folder)
