"""The benchmark's files, and what is wrong with them said in a sentence."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.generation import Generation
from fusion_core.evaluation.jsonl import read_jsonl, write_jsonl
from fusion_core.evaluation.mt_bench import answer_questions, load_mt_bench, read_answers
from fusion_core.evaluation.mt_bench.data import TEMPERATURES, JudgePrompt, prompt_of


def test_the_real_benchmark_is_what_fastchat_says(shared_folder: Path) -> None:
    benchmark = load_mt_bench(shared_folder / "data" / "mt_bench")
    assert Counter(question.category for question in benchmark.questions) == dict.fromkeys(TEMPERATURES, 10)
    assert all(len(question.turns) == 2 for question in benchmark.questions)
    assert len(benchmark.references) == 30
    # Every prompt that judging needs can be filled in.
    for question in benchmark.questions:
        for kind in ("single", "pair"):
            for turn in (1, 2):
                assert prompt_of(benchmark, kind, question, turn).name.startswith(kind)


def test_temperatures_are_those_of_the_categories() -> None:
    assert TEMPERATURES["roleplay"] == TEMPERATURES["writing"] == 0.7
    assert TEMPERATURES["stem"] == TEMPERATURES["humanities"] == 0.1
    assert {TEMPERATURES[name] for name in ("math", "coding", "reasoning", "extraction")} == {0.0}


def test_the_second_turn_follows_the_models_own_first_answer_at_the_categorys_temperature(benchmark_data) -> None:
    asked = []

    class Echo:
        name = "echo"

        def generate(self, conversations, sampling, progress):
            asked.extend((list(one), sampling.temperature, sampling.seed) for one in conversations)
            progress(len(conversations), len(conversations))
            return [Generation(f"reply {len(one)}", len(one) < 2, 1, 1) for one in conversations]

    shown: list[tuple[int, int]] = []
    answers = answer_questions(
        Echo(), benchmark_data, max_new_tokens=5, seed=4, progress=lambda done, total: shown.append((done, total))
    )
    assert [one.turns for one in answers] == [("reply 1", "reply 3")] * 4
    assert [one.finished for one in answers] == [(True, False)] * 4
    second = {one[0][0]["content"]: one for one in asked if len(one[0]) == 3}
    conversation, temperature, seed = second["Write a line about rain."]
    assert conversation[1] == {"role": "assistant", "content": "reply 1"}
    assert (temperature, seed) == (0.7, 4)
    assert second["What is 6 times 7?"][1] == 0.0
    assert shown[-1] == (8, 8)


def test_a_subset_takes_from_every_category_and_has_another_digest(benchmark_data) -> None:
    subset = benchmark_data.first(3)
    assert [question.id for question in subset.questions] == [81, 101, 111]
    assert subset.digest != benchmark_data.digest
    assert benchmark_data.first(None) is benchmark_data


def broken(sample: Path, tmp_path: Path, name: str, old: str, new: str) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(sample, folder)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("question.jsonl", '"category"', '"kind"', "Line 1 of .*question.jsonl has no 'category'"),
        ("question.jsonl", '{"question_id": 101', "101", "Line 2 of .* is no JSON"),
        ("question.jsonl", '"question_id": 101', '"question_id": 81', "question 81 twice"),
        ("reference_answer_gpt-4.jsonl", '"question_id": 111', '"question_id": 112', "question 111 .*reference"),
        ("reference_answer_gpt-4.jsonl", '["42", "21"]', '["42"]', "question 111 .*reference"),
    ],
)
def test_a_broken_file_is_named(sample, tmp_path, name, old, new, said) -> None:
    with pytest.raises(EvaluationError, match=said):
        load_mt_bench(broken(sample, tmp_path, name, old, new))


def test_a_missing_prompt_is_named(sample, tmp_path) -> None:
    benchmark = load_mt_bench(
        broken(sample, tmp_path, "judge_prompts.jsonl", "single-math-v1-multi", "single-math-v2-m")
    )
    with pytest.raises(EvaluationError, match="lack 'single-math-v1-multi-turn'"):
        prompt_of(benchmark, "single", benchmark.questions[1], 2)


def test_missing_files_name_the_command_that_gets_them(tmp_path) -> None:
    with pytest.raises(EvaluationError, match="fuseline data mt-bench"):
        load_mt_bench(tmp_path)


def test_an_answer_that_is_missing_is_named(sample, tmp_path, benchmark_data) -> None:
    folder = broken(sample, tmp_path, "model_answer/alpha.jsonl", '"42", "21"', '"42"')
    with pytest.raises(EvaluationError, match="1 of the 2 turns of question 111"):
        read_answers(folder / "model_answer" / "alpha.jsonl", benchmark_data)


@pytest.mark.parametrize(
    "change",
    [
        {"question_id": "x"},
        {"question_id": None},
        {"choices": []},
        {"choices": "x"},
        {"choices": [{"turns": "hello"}]},
        {"choices": [{"turns": [None, None]}]},
    ],
)
def test_answers_of_another_format_are_refused(change: dict, benchmark_data, sample: Path, tmp_path: Path) -> None:
    rows = read_jsonl(sample / "model_answer" / "alpha.jsonl")
    write_jsonl(tmp_path / "a.jsonl", [rows[0] | change, *rows[1:]])
    with pytest.raises(EvaluationError, match=r"a\.jsonl"):
        read_answers(tmp_path / "a.jsonl", benchmark_data)


def test_a_question_answered_twice_is_refused(benchmark_data, sample: Path, tmp_path: Path) -> None:
    rows = read_jsonl(sample / "model_answer" / "alpha.jsonl")
    write_jsonl(tmp_path / "a.jsonl", [*rows, rows[0]])
    with pytest.raises(EvaluationError, match="twice"):
        read_answers(tmp_path / "a.jsonl", benchmark_data)


@pytest.mark.parametrize("template", ["{nothing}", "{0}", "{"])
def test_a_judge_prompt_that_cannot_be_filled_in_is_named(template: str) -> None:
    with pytest.raises(EvaluationError, match="'odd'"):
        JudgePrompt("odd", "", template).messages(question="q")
