"""MT-Bench's files, AlpacaEval's, rows of benchmarks, and logs of replies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fusion_core.evaluation.alpaca_eval import load_alpaca_eval, read_outputs
from fusion_core.evaluation.chat_sanity import read_prompts
from fusion_core.evaluation.code_problems import read_problems
from fusion_core.evaluation.exact_match import equal_numbers, read_questions
from fusion_core.evaluation.judged_scores import Judge
from fusion_core.evaluation.judging import Reply, ReplyLog
from fusion_core.evaluation.judging.ratings import read_rating
from fusion_core.evaluation.mt_bench import load_mt_bench, read_answers, read_judgments, score_ratings
from fusion_core.evaluation.mt_bench.data import prompt_of, reference_fields
from tests.fuzz.fuzzing import (
    counts,
    fuzz,
    fuzz_values,
    json_bytes,
    json_values,
    mutated_bytes,
    mutated_value,
)

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
    {"question_id": 101, "category": "math", "turns": ["Add 1 and 1.", "And 2?"]},
]
REFERENCES = [{"question_id": 101, "choices": [{"index": 0, "turns": ["2", "4"]}]}]
PROMPTS = [
    {"name": name, "system_prompt": "Judge.", "prompt_template": template}
    for name, template in {
        "single-v1": "[Question]\n{question}\n[Answer]\n{answer}",
        "single-math-v1": "{question} {ref_answer_1} {answer}",
        "single-v1-multi-turn": "{question_1} {answer_1} {question_2} {answer_2}",
        "single-math-v1-multi-turn": "{question_1} {ref_answer_1} {answer_1} {question_2} {ref_answer_2} {answer_2}",
    }.items()
]
ANSWERS = [{"question_id": one["question_id"], "choices": [{"index": 0, "turns": ["a", "b"]}]} for one in QUESTIONS]
JUDGMENTS = [
    {
        "question_id": one["question_id"],
        "model": "mine",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": "x",
        "judgment": "[[7]]",
        "score": 7,
        "turn": turn,
    }
    for one in QUESTIONS
    for turn in (1, 2)
]
OUTPUTS = [{"instruction": "Say hello.", "output": "Hello.", "generator": "gpt", "dataset": "helpful"}] * 2
LOGGED = [
    {"key": f"k{n}", "reply": "[[7]]", "finished": True, "prompt_tokens": 3, "completion_tokens": 1, "tstamp": 1.0}
    for n in range(2)
]
ROWS = {
    "questions": ({"question": "1 + 1?", "answer": "So <<1+1=2>>2 #### 2"}, read_questions),
    "mbpp": ({"task_id": 1, "text": "Add.", "test_list": ["assert add(1, 1) == 2"], "test_imports": []}, read_problems),
    "human_eval": (
        {"task_id": "1", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): 1"},
        read_problems,
    ),
    "prompts": ({"prompt": "Guten Tag", "language": "de"}, read_prompts),
}


def lines(rng: random.Random, rows: list[Any]) -> bytes:
    """Write rows as JSONL, some changed, sometimes with broken bytes."""
    try:
        text = "\n".join(json.dumps(mutated_value(rng, row) if rng.random() < 0.5 else row) for row in rows)
    except RecursionError:
        text = "[" * 5000
    content = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content) if rng.random() < 0.3 else content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with valid files of MT-Bench."""
    files = {"question": QUESTIONS, "reference_answer_gpt-4": REFERENCES, "judge_prompts": PROMPTS}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@counts
def test_the_benchmarks_files(count: int, folder: Path) -> None:
    files = {"question": QUESTIONS, "reference_answer_gpt-4": REFERENCES, "judge_prompts": PROMPTS}
    valid = {name: (folder / f"{name}.jsonl").read_bytes() for name in files}

    def make(rng: random.Random) -> dict[str, bytes]:
        name = rng.choice(list(files))
        changed = lines(rng, files[name])
        if name == "judge_prompts" and rng.random() < 0.3:
            prompt = {**PROMPTS[0], "prompt_template": rng.choice(TEMPLATES)}
            changed = "\n".join(map(json.dumps, [prompt, *PROMPTS[1:]])).encode()
        return valid | {name: changed}

    def read(made: dict[str, bytes]) -> None:
        for name, content in made.items():
            (folder / f"{name}.jsonl").write_bytes(content)
        benchmark = load_mt_bench(folder)
        for question in benchmark.questions:
            for turn in range(1, len(question.turns) + 1):
                fields = {"question": "q", "answer": "a"} if turn == 1 else {
                    f"{kind}_{number}": kind for kind in ("question", "answer") for number in (1, 2)
                }  # fmt: skip
                prompt = prompt_of(benchmark, "single", question, turn)
                messages = prompt.messages(**fields, **reference_fields(benchmark, question))
                assert len(messages[1]["content"]) < 1_000_000

    fuzz(count, make, read, folder)


TEMPLATES = (
    *("{question.__class__.__mro__}", "{question[0]}", "{question:>999999999999}", "{question!r:>99999999}", "{", "}"),
    *("{}", "{0}", "{question:{answer}}", "{unknown}", "{question}{answer}", "{{question}}", "{question!x}"),
)


@counts
def test_answers_and_judgments(count: int, folder: Path) -> None:
    benchmark = load_mt_bench(folder)
    path = folder / "rows.jsonl"

    def read(made: tuple[str, bytes]) -> None:
        kind, content = made
        path.write_bytes(content)
        if kind == "answers":
            answers = read_answers(path, benchmark)
            assert [answer.question_id for answer in answers] == [81, 101]
            return
        rows = read_judgments(path)
        if rows:
            judged: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                judged.setdefault(row["model"], []).append(row)
            judge = Judge(model="gpt-4", endpoint="a file", judgments=1)
            table = score_ratings(benchmark, judged, judge, next(iter(judged)), resamples=2)
            for scored in table.rows:
                assert all(mean.mean is None or 1 <= mean.mean <= 10 for mean in scored.means.values())

    def make(rng: random.Random) -> tuple[str, bytes]:
        kind = rng.choice(("answers", "judgments"))
        return kind, lines(rng, ANSWERS if kind == "answers" else JUDGMENTS)

    fuzz(count, make, read, folder)


@counts
def test_alpaca_evals_files(count: int, tmp_path: Path) -> None:
    prompt = tmp_path / "alpaca_eval_clf.txt"
    from fusion_core.evaluation import alpaca_eval

    prompt = tmp_path / alpaca_eval.PROMPT_FILE
    valid = b"<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\n{instruction} {output_1} {output_2}\n<|im_end|>"

    def make(rng: random.Random) -> tuple[bytes, bytes]:
        rows = mutated_value(rng, OUTPUTS)
        text = json_bytes(rows)
        return text, mutated_bytes(rng, valid) if rng.random() < 0.5 else valid

    def read(made: tuple[bytes, bytes]) -> None:
        path = tmp_path / alpaca_eval.BASELINE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        prompt.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[0])
        prompt.write_bytes(made[1])
        read_outputs(path)
        benchmark = load_alpaca_eval(tmp_path)
        assert benchmark.messages("a", "b", "c")

    fuzz(count, make, read, tmp_path)


@pytest.mark.parametrize("kind", ROWS)
@counts
def test_rows_of_benchmarks(count: int, kind: str, tmp_path: Path) -> None:
    row, read_rows = ROWS[kind]
    path = tmp_path / "rows.jsonl"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for one in read_rows(path):
            assert kind != "questions" or equal_numbers(one.number, one.number)

    fuzz(count, lambda rng: lines(rng, [row, row]), read, tmp_path)


@counts
def test_the_log_of_replies(count: int, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        log = ReplyLog(path)
        log.add("new", Reply("[[3]]", True, 1, 1, {"m": -0.5}), 2.0)
        again = ReplyLog(path)
        assert len(again) == len(log) and again.find("new") == log.find("new")
        for key in ("k0", "k1"):
            found = again.find(key)
            if found is not None:
                read_rating(found[0].text)

    fuzz(count, lambda rng: lines(rng, LOGGED) + b"\n", read, tmp_path)


@counts
def test_any_value_as_a_line(count: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def read(value: Any) -> None:
        path.write_text(json.dumps(value), encoding="utf-8")
        read_judgments(path)

    fuzz_values(count, json_values, read, tmp_path)
