"""The benchmarks without a judge, each with a scripted model, and their rules on real rows."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from fusion_core.config import EvaluationConfig
from fusion_core.config.benchmarks import ChatSanityConfig, ExactMatchConfig, PassAt1Config
from fusion_core.errors import EvaluationError
from fusion_core.evaluation.benchmark import BenchmarkItem, BenchmarkResult, mean_of_items
from fusion_core.evaluation.benchmarks import benchmarks_of
from fusion_core.evaluation.chat_sanity import OWN_PROMPTS, find_loop, read_prompts, score_chat_sanity
from fusion_core.evaluation.code_execution import Limits, run_programs
from fusion_core.evaluation.code_problems import find_code, read_problems
from fusion_core.evaluation.exact_match import equal_numbers, last_number, read_questions, score_exact_match
from fusion_core.evaluation.generation import Conversation, Generation
from fusion_core.evaluation.languages import is_in_language, language_of
from fusion_core.evaluation.pass_at_1 import score_pass_at_1


class Scripted:
    """A model that says what it is told to, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, answers: Sequence[str], unfinished: Sequence[int] = ()) -> None:
        self.answers, self.unfinished = answers, unfinished
        self.asked: list[Conversation] = []

    def generate(self, conversations, sampling, progress=None) -> list[Generation]:
        assert sampling.is_greedy
        self.asked = list(conversations)
        return [
            Generation(text, index not in self.unfinished, 1, 1)
            for index, text in enumerate(self.answers[: len(conversations)])
        ]


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("The total is $1,234.50.", "1234.50"),
        ("12-5 = 7.", "7"),
        ("from 10-20", "20"),
        ("x = -3", "-3"),
        ("it is $-5", "-5"),
        ("it is -$-5", "-5"),
        ("**42**", "42"),
        ("so 6 days", "6"),
        (".5 of it", ".5"),
        ("3 apples, or none", "3"),
        ("no number at all", None),
    ],
)
def test_the_last_number_counts(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_numbers_are_equal_by_value() -> None:
    assert equal_numbers("18.00", "18")
    assert not equal_numbers("18.01", "18")
    assert not equal_numbers(None, "18")


def test_exact_match_scores_examples_and_cut_answers(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(5)]
    path = write_rows(tmp_path / "sums.jsonl", rows)
    config = ExactMatchConfig(name="sums", path=path, skip=1, limit=3, few_shot=1, few_shot_path=path)
    model = Scripted(["It is 2.\n#### 2", "It is 7", "4 it is, not 5. So #### 4"], unfinished=[1])
    result = score_exact_match(model, config)
    assert [item.scores for item in result.items] == [(1.0,), (0.0,), (1.0,)]
    assert result.metrics[0].name == "exact_match/sums"
    assert result.metrics[0].mean == pytest.approx(2 / 3)
    assert result.unfinished == 1
    roles = [turn["role"] for turn in model.asked[0]]
    assert roles == ["user", "assistant", "user"]
    assert "<<" not in model.asked[0][1]["content"]


@pytest.mark.parametrize(
    ("row", "word"),
    [({"question": "?", "answer": "18"}, "####"), ({"answer": "#### 1"}, "`question`"), ([1], "object")],
)
def test_a_row_that_is_no_arithmetic_question_is_named(tmp_path: Path, row, word: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(EvaluationError, match="row 1") as error:
        read_questions(path)
    assert word in str(error.value)


def test_every_reference_of_gsm8k_is_right_by_our_rule(shared_folder: Path) -> None:
    questions = read_questions(shared_folder / "data" / "gsm8k" / "test.jsonl")
    assert len(questions) == 1319
    assert all(equal_numbers(last_number(question.solution), question.number) for question in questions)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\ndef f(x):\n    return x\n```\nDone.", "def f(x):\n    return x\n"),
        ("```\nimport os\n```\nand\n```py\ndef f(x): return 1\n```", "def f(x): return 1\n"),
        ("```bash\nls\n```\n```python\ndef g(): 0\n```", "def g(): 0\n"),
        ("```python\ndef f(x):\n    return", "def f(x):\n    return"),
        ("Here it is.\ndef f(x):\n    return x", "def f(x):\n    return x"),
    ],
)
def test_the_code_of_an_answer_is_found(answer: str, code: str) -> None:
    assert find_code(answer, "f") == code


def test_pass_at_1_runs_the_tests(tmp_path: Path) -> None:
    tests = ["assert double(2) == 4", "assert double(-1) == -2"]
    rows = [{"text": "Double a number.", "test_list": tests, "task_id": n} for n in range(3)]
    config = PassAt1Config(name="doubles", path=write_rows(tmp_path / "rows.jsonl", rows), time_limit_seconds=2)
    answers = ["```python\ndef double(x):\n    return 2 * x\n```", "def double(x): return x", "I cannot."]
    result = score_pass_at_1(Scripted(answers), config)
    assert [item.found for item in result.items] == ["passed", "wrong", "error"]
    assert result.metrics[0].name == "pass_at_1/doubles"
    assert result.metrics[0].mean == pytest.approx(1 / 3)
    assert set(result.protections) == {"network", "disk", "user", "files", "limits"}


def test_references_of_humaneval_and_mbpp_pass_and_nonsense_fails(shared_folder: Path) -> None:
    data = shared_folder / "data"
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:12]
    problems = read_problems(data / "humaneval" / "HumanEval.jsonl.gz", limit=12)
    pairs = list(zip(problems, rows, strict=True))
    whole = [p.program(f"```python\n{row['prompt']}{row['canonical_solution']}```") for p, row in pairs]
    bodies = [p.program(row["canonical_solution"]) for p, row in pairs]
    nonsense = [p.program("```python\n    pass\n```") for p, _ in pairs]
    with (data / "mbpp" / "mbpp.jsonl").open(encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file][10:22]
    mbpp = read_problems(data / "mbpp" / "mbpp.jsonl", skip=10, limit=12)
    right = [p.program(f"```python\n{row['code']}\n```") for p, row in zip(mbpp, tasks, strict=True)]
    assert all(verdict.passed for verdict in run_programs([*whole, *bodies, *right], Limits()))
    assert not any(verdict.passed for verdict in run_programs(nonsense, Limits()))


def test_loops_are_found_and_ordinary_text_is_none() -> None:
    assert find_loop("I am here. " * 12)
    assert find_loop("the " * 40)
    assert find_loop("很好" * 30)
    varied = " ".join(f"{n}. The answer to this question is that the cat sat on the mat." for n in range(12))
    assert find_loop(varied)
    for row in read_prompts(None):
        assert find_loop(row.prompt) is None
    assert find_loop("ha ha ha ha") is None
    assert find_loop("") is None
    assert find_loop("| a | b |\n| - | - |\n" + "".join(f"| {n} | {n * n} |\n" for n in range(20))) is None
    assert find_loop(Path(__file__).read_text(encoding="utf-8")[:3000]) is None


def test_languages_of_our_prompts_are_recognised() -> None:
    rows = [json.loads(line) for line in OWN_PROMPTS.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        assert is_in_language(row["prompt"], row["language"]) in (True, None)
    assert sum(language_of(row["prompt"]) == row["language"] for row in rows) >= 0.8 * len(rows)
    english = (
        "The sky is blue because of the way that light is scattered in the air, and it is not a colour of its own."
    )
    for language in ("de", "fr", "es", "it", "pt", "nl", "ru", "zh", "ja", "ko", "ar", "hi"):
        assert is_in_language(english, language) is False
    assert is_in_language("OK.", "de") is None
    assert is_in_language("```python\nfor x in range(10): print(x, 'and the of to in is that')\n```", "de") is None


def test_chat_sanity_says_what_is_wrong(tmp_path: Path) -> None:
    rows = [{"prompt": "Was ist ein Baum?", "language": "de"}] * 4
    config = ChatSanityConfig(path=write_rows(tmp_path / "prompts.jsonl", rows))
    german = "Ein Baum ist eine große Pflanze, die aus einem Stamm und den Ästen mit Blättern besteht."
    english = "A tree is a plant that is tall and has a trunk with the branches and leaves of it."
    result = score_chat_sanity(Scripted([german, english, "und so " * 40, ""], unfinished=[2]), config)
    assert [item.scores for item in result.items] == [
        (1.0, 1.0, 1.0, 1.0),
        (0.0, 1.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
        (0.0, 0.0, 1.0, None),
    ]
    notes = [item.note for item in result.items]
    assert notes[1] == "not in de"
    assert "did not end" in notes[2] and "repeats" in notes[2]
    assert notes[3] == "no answer"
    means = {metric.name: (metric.mean, metric.n) for metric in result.metrics}
    assert means["chat_sanity/language"] == (pytest.approx(2 / 3), 3)
    assert means["chat_sanity/all"] == (0.25, 4)


def test_a_recipe_s_benchmarks_depend_on_content_and_settings_not_on_places(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1?", "answer": "#### 2"}]
    first = write_rows(tmp_path / "a.jsonl", rows)
    second = write_rows(tmp_path / "b.jsonl", rows)
    third = write_rows(tmp_path / "c.jsonl", [*rows, *rows])

    def identity(path: Path, **settings) -> tuple:
        config = EvaluationConfig.model_validate({"exact_match": [{"name": "sums", "path": path, **settings}]})
        (benchmark,) = benchmarks_of(config)
        return benchmark.data_digest, tuple(sorted(benchmark.settings.items()))

    assert identity(first) == identity(second)
    assert identity(first) != identity(third)
    assert identity(first) != identity(first, max_new_tokens=8)


def test_broken_settings_are_named(tmp_path: Path) -> None:
    rows = {"name": "sums", "path": tmp_path / "missing.jsonl"}
    with pytest.raises(EvaluationError, match=r"missing\.jsonl does not exist"):
        benchmarks_of(EvaluationConfig.model_validate({"exact_match": [rows]}))
    with pytest.raises(ValidationError, match="called 'sums'"):
        EvaluationConfig.model_validate({"exact_match": [rows, rows]})
    with pytest.raises(ValidationError, match="go together"):
        EvaluationConfig.model_validate({"exact_match": [{**rows, "few_shot": 2}]})


def test_items_have_a_score_for_every_metric() -> None:
    item = BenchmarkItem(id="1", scores=(1.0, 0.0))
    with pytest.raises(ValidationError, match="2 scores for 1 metrics"):
        BenchmarkResult(
            benchmark="exact_match",
            name="x",
            model_name="m",
            version="1",
            metrics=(mean_of_items("exact_match/x", (item,)),),
            items=(item,),
        )
