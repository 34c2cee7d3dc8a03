"""A model's answers, in FastChat's format (``model_answer/<model>.jsonl``)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.generation import Generator, Message, Sampling
from fusion_core.evaluation.jsonl import first_turns, read_jsonl, whole_number, write_jsonl
from fusion_core.evaluation.mt_bench.data import MtBench, Question
from fusion_core.progress import Advance, ignore_progress

LENGTH_OF_ANSWER_IDS = 22


@dataclass(frozen=True)
class Answer:
    """What a model answered to the turns of one question; ``finished`` where a turn was not cut off."""

    question_id: int
    turns: tuple[str, ...]
    finished: tuple[bool, ...]


def answer_questions(
    generator: Generator,
    benchmark: MtBench,
    *,
    max_new_tokens: int,
    seed: int = 0,
    progress: Advance = ignore_progress,
) -> list[Answer]:
    """Let a model answer every turn, the second after its own answer to the first, at each category's temperature."""
    conversations: dict[int, list[Message]] = {question.id: [] for question in benchmark.questions}
    finished: dict[int, list[bool]] = {question.id: [] for question in benchmark.questions}
    total = sum(len(question.turns) for question in benchmark.questions)
    done = 0
    for turn in range(2):
        asked = [question for question in benchmark.questions if turn < len(question.turns)]
        for group in _by_temperature(asked):
            for question in group:
                conversations[question.id].append({"role": "user", "content": question.turns[turn]})
            before = done

            def advance(part: int, _: int, before: int = before) -> None:
                progress(before + part, total)

            sampling = Sampling(group[0].temperature, max_new_tokens, seed)
            responses = generator.generate([conversations[one.id] for one in group], sampling, advance)
            for question, response in zip(group, responses, strict=True):
                conversations[question.id].append({"role": "assistant", "content": response.text})
                finished[question.id].append(response.finished)
            done += len(group)
    return [
        Answer(
            question.id,
            tuple(message["content"] for message in conversations[question.id] if message["role"] == "assistant"),
            tuple(finished[question.id]),
        )
        for question in benchmark.questions
    ]


def write_answers(path: Path, model: str, answers: Iterable[Answer]) -> None:
    """Write answers as FastChat does; ``finished`` is a key of our own, which it ignores."""
    write_jsonl(path, (_row(model, answer) for answer in answers))


def read_answers(path: Path, benchmark: MtBench) -> list[Answer]:
    """Read answers that Fuseline or FastChat wrote, in the order of the benchmark's questions.

    Raises
    ------
    EvaluationError
        If a question, or a turn of one, has no answer, or one has two; or if a row is not in this format.
    """
    found: dict[int, Answer] = {}
    for row in read_jsonl(path, ("question_id", "choices")):
        question_id, turns = whole_number(row, "question_id", path), first_turns(row, path)
        if question_id in found:
            raise EvaluationError(f"{path} answers question {question_id} twice; remove one of the two.")
        # FastChat does not say whether an answer was cut off.
        said = row.get("finished")
        finished = tuple(map(bool, said)) if isinstance(said, list) else (True,) * len(turns)
        found[question_id] = Answer(question_id, turns, finished)
    for question in benchmark.questions:
        given = len(found[question.id].turns) if question.id in found else 0
        if given < len(question.turns):
            raise EvaluationError(
                f"{path} answers {given} of the {len(question.turns)} turns of question {question.id}; let the model "
                "answer all questions."
            )
    return [found[question.id] for question in benchmark.questions]


def _row(model: str, answer: Answer) -> Mapping[str, Any]:
    content = f"{model} {answer.question_id} {list(answer.turns)}"
    return {
        "question_id": answer.question_id,
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:LENGTH_OF_ANSWER_IDS],
        "model_id": model,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": time.time(),
        "finished": list(answer.finished),
    }


def _by_temperature(questions: list[Question]) -> list[list[Question]]:
    temperatures = sorted({question.temperature for question in questions})
    return [[one for one in questions if one.temperature == temperature] for temperature in temperatures]
