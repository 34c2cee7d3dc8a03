"""Single-answer grading on 1 to 10, in FastChat's format (``model_judgment/<judge>_single.jsonl``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.jsonl import read_jsonl
from fusion_core.evaluation.judging.judge import JudgeModel
from fusion_core.evaluation.judging.ratings import HIGHEST_RATING, LOWEST_RATING, RATING_REMINDER, read_rating
from fusion_core.evaluation.mt_bench.answers import Answer
from fusion_core.evaluation.mt_bench.data import JudgePrompt, MtBench, Question, prompt_of, reference_fields
from fusion_core.progress import Advance, ignore_progress

# FastChat's mark of a judgment without a rating; its means leave such rows out, and so do ours.
NO_RATING = -1
JUDGMENT_KEYS = ("question_id", "model", "judge", "user_prompt", "score", "turn")


def rating_of(row: Mapping[str, Any]) -> float | None:
    """Return a row's rating; None where it has none within the scale, which FastChat's files may hold."""
    score = row["score"]
    return float(score) if LOWEST_RATING <= score <= HIGHEST_RATING else None


def read_judgments(path: Path) -> list[dict[str, Any]]:
    """Read ratings that Fuseline or FastChat wrote.

    Raises
    ------
    EvaluationError
        If the file, or a row of it, is not in FastChat's format; names the field.
    """
    rows = read_jsonl(path, JUDGMENT_KEYS)
    for number, row in enumerate(rows, 1):
        judge = row["judge"]
        right = {
            "question_id": isinstance(row["question_id"], int),
            "model": isinstance(row["model"], str),
            "judge": isinstance(judge, list) and len(judge) == 2 and all(isinstance(one, str) for one in judge),
            "user_prompt": isinstance(row["user_prompt"], str),
            "score": isinstance(row["score"], int | float),
            "turn": row["turn"] in (1, 2),
            "sample": isinstance(row.get("sample", 0), int),
        }
        wrong = next((name for name, is_right in right.items() if not is_right), None)
        if wrong is not None:
            raise EvaluationError(
                f"{path}: judgment {number} has {str(row[wrong])[:40]!r} for {wrong!r}, which FastChat never writes; "
                "correct it or take it out."
            )
    return rows


@dataclass(frozen=True)
class _Job:
    question: Question
    turn: int
    sample: int
    prompt: JudgePrompt
    messages: list[dict[str, str]]


def judge_answers(
    benchmark: MtBench,
    model: str,
    answers: Sequence[Answer],
    judge: JudgeModel,
    *,
    judgments: int = 1,
    known: Iterable[Mapping[str, Any]] = (),
    progress: Advance = ignore_progress,
) -> list[dict[str, Any]]:
    """Have every turn of every answer rated; return rows as FastChat writes them.

    Parameters
    ----------
    benchmark : MtBench
    model : str
        Whose answers these are.
    answers : sequence of Answer
        To the benchmark's questions, in their order.
    judge : JudgeModel
    judgments : int
        Of each answer.
    known : rows
        Judgments made before, also by FastChat: those of the same judge on the same prompt are taken over.
    progress : Advance

    Returns
    -------
    list of dict
        FastChat's keys, and ``sample`` and ``attempts`` of our own. ``score`` is -1 where no attempt gave a rating.
    """
    taken = _by_prompt(known, judge.model)
    jobs = [
        job
        for question, answer in zip(benchmark.questions, answers, strict=True)
        for job in _jobs(benchmark, question, answer, judgments)
    ]

    def rate(job: _Job) -> dict[str, Any]:
        there = taken.get((job.prompt.name, job.messages[-1]["content"]), [])
        if job.sample < len(there):
            return {**there[job.sample], "model": model, "sample": job.sample}
        judged = judge.ask(job.messages, lambda reply: read_rating(reply.text), RATING_REMINDER, job.sample)
        return {
            "question_id": job.question.id,
            "model": model,
            "judge": [judge.model, job.prompt.name],
            "user_prompt": job.messages[-1]["content"],
            "judgment": judged.text,
            "score": NO_RATING if judged.value is None else judged.value,
            "turn": job.turn,
            "tstamp": judged.at,
            "sample": job.sample,
            "attempts": judged.attempts,
        }

    return judge.ask_all(jobs, rate, progress)


def _jobs(benchmark: MtBench, question: Question, answer: Answer, judgments: int) -> list[_Job]:
    jobs = []
    for turn in range(1, len(question.turns) + 1):
        prompt = prompt_of(benchmark, "single", question, turn)
        fields = reference_fields(benchmark, question)
        if turn == 1:
            fields |= {"question": question.turns[0], "answer": answer.turns[0]}
        else:
            fields |= {f"question_{number}": text for number, text in enumerate(question.turns, 1)}
            fields |= {f"answer_{number}": text for number, text in enumerate(answer.turns, 1)}
        messages = prompt.messages(**fields)
        jobs += [_Job(question, turn, sample, prompt, messages) for sample in range(judgments)]
    return jobs


def _by_prompt(rows: Iterable[Mapping[str, Any]], judge: str) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        model, prompt = row["judge"]
        # What has no rating is asked for again; replies of our own are found in the log without cost.
        if model == judge and rating_of(row) is not None:
            found.setdefault((prompt, row["user_prompt"]), []).append(row)
    return found
