"""Exact match on questions whose answer is one number, by GSM8K's rule.

The reference ends in ``#### 18``; of an answer, the last number counts (Cobbe et al., arXiv 2110.14168; lm-eval's
``flexible-extract``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from fusion_core.config.benchmarks import ExactMatchConfig
from fusion_core.errors import EvaluationError
from fusion_core.evaluation.benchmark import (
    BenchmarkItem,
    BenchmarkResult,
    mean_of_items,
    read_benchmark_rows,
    text_field,
)
from fusion_core.evaluation.generation import Conversation, Generator, Sampling
from fusion_core.progress import Advance, ignore_progress

VERSION = "2"
MARK = "####"
INSTRUCTION = "Reason step by step, then give the answer as a number on a last line of its own, after ####."
# A minus between two numbers subtracts; before a number that stands alone it is a sign.
NUMBER = re.compile(r"(?<![\w.,])-?\$?-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|\.\d+")
# What GSM8K's worked solutions hold for a calculator: <<16-3-4=9>>.
CALCULATION = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class ArithmeticQuestion:
    """A question and its number, with the worked solution that ends in it."""

    id: str
    question: str
    solution: str
    number: str


def read_questions(path: Path, *, skip: int = 0, limit: int | None = None) -> list[ArithmeticQuestion]:
    """Read rows of ``question`` and ``answer``, the latter ending in ``#### number``.

    Raises
    ------
    EvaluationError
        If the file or a row is not of this format; names the row.
    """
    questions = []
    for number, row in read_benchmark_rows(path, skip=skip, limit=limit):
        where = f"{path}, row {number}"
        solution = text_field(row, "answer", where)
        expected = last_number(solution.rpartition(MARK)[2]) if MARK in solution else None
        if expected is None:
            raise EvaluationError(f"{where}: `answer` does not end in '{MARK} number', as GSM8K's do.")
        questions.append(ArithmeticQuestion(str(number), text_field(row, "question", where), solution, expected))
    return questions


def last_number(text: str) -> str | None:
    """Return the last number of a text without commas, dollar sign and final point, or None where there is none."""
    numbers = NUMBER.findall(text)
    if not numbers:
        return None
    digits = numbers[-1].replace(",", "").replace("$", "").rstrip(".")
    # "-$-5" has its sign twice.
    return f"-{digits.lstrip('-')}" if digits.startswith("-") else digits


def equal_numbers(found: str | None, expected: str) -> bool:
    """Whether two numbers are equal in value: 18.00 is 18."""
    return found is not None and Decimal(found) == Decimal(expected)


def score_exact_match(
    generator: Generator, config: ExactMatchConfig, *, progress: Advance = ignore_progress
) -> BenchmarkResult:
    """Let a model answer arithmetic questions greedily, and count whose last number is right.

    Raises
    ------
    EvaluationError
        If the data file cannot be used.
    """
    questions = read_questions(config.path, skip=config.skip, limit=config.limit)
    examples: list[ArithmeticQuestion] = []
    if config.few_shot_path is not None:
        examples = read_questions(config.few_shot_path, limit=config.few_shot)
    conversations = [_conversation(examples, question) for question in questions]
    answers = generator.generate(conversations, Sampling(max_new_tokens=config.max_new_tokens), progress)
    items = []
    for question, answer in zip(questions, answers, strict=True):
        found = last_number(answer.text)
        items.append(
            BenchmarkItem(
                id=question.id,
                question=question.question,
                answer=answer.text,
                found=found or "",
                expected=question.number,
                scores=(float(equal_numbers(found, question.number)),),
                note="" if answer.finished else "cut off",
            )
        )
    return BenchmarkResult(
        benchmark="exact_match",
        name=config.name,
        model_name=generator.name,
        version=VERSION,
        few_shot=config.few_shot,
        metrics=(mean_of_items(f"exact_match/{config.name}", tuple(items)),),
        items=tuple(items),
        unfinished=sum(not answer.finished for answer in answers),
    )


def _conversation(examples: Sequence[ArithmeticQuestion], question: ArithmeticQuestion) -> Conversation:
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": f"{example.question}\n\n{INSTRUCTION}"})
        turns.append({"role": "assistant", "content": CALCULATION.sub("", example.solution)})
    return [*turns, {"role": "user", "content": f"{question.question}\n\n{INSTRUCTION}"}]
