"""Comparison with a baseline's answers in both orders, in FastChat's format (``model_judgment/<judge>_pair.jsonl``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusion_core.evaluation.judging.judge import JudgeModel
from fusion_core.evaluation.judging.ratings import VERDICT_REMINDER, read_verdict
from fusion_core.evaluation.mt_bench.answers import Answer
from fusion_core.evaluation.mt_bench.data import JudgePrompt, MtBench, Question, prompt_of, reference_fields
from fusion_core.progress import Advance, ignore_progress

Winner = Literal["model_1", "model_2", "tie", "error"]


@dataclass(frozen=True)
class _Job:
    question: Question
    turn: int
    sample: int
    prompt: JudgePrompt
    games: tuple[list[dict[str, str]], list[dict[str, str]]]


def judge_pairs(
    benchmark: MtBench,
    model: str,
    answers: Sequence[Answer],
    baseline: str,
    baseline_answers: Sequence[Answer],
    judge: JudgeModel,
    *,
    judgments: int = 1,
    progress: Advance = ignore_progress,
) -> list[dict[str, Any]]:
    """Have every turn compared with the baseline's, once in each order; return rows as FastChat writes them.

    ``g1_winner`` and ``g2_winner`` are model_1 (the model), model_2 (the baseline), tie, or error where no attempt gave
    a verdict. In game 1 the model's answer stands first, in game 2 the baseline's.
    """
    jobs = [
        job
        for question, mine, theirs in zip(benchmark.questions, answers, baseline_answers, strict=True)
        for job in _jobs(benchmark, question, mine, theirs, judgments)
    ]

    def compare(job: _Job) -> dict[str, Any]:
        first, second = (
            judge.ask(game, lambda reply: read_verdict(reply.text), VERDICT_REMINDER, job.sample) for game in job.games
        )
        return {
            "question_id": job.question.id,
            "model_1": model,
            "model_2": baseline,
            "g1_winner": _winner(first.value, "model_1", "model_2"),
            "g2_winner": _winner(second.value, "model_2", "model_1"),
            "judge": [judge.model, job.prompt.name],
            "g1_user_prompt": job.games[0][-1]["content"],
            "g1_judgment": first.text,
            "g2_user_prompt": job.games[1][-1]["content"],
            "g2_judgment": second.text,
            "turn": job.turn,
            "tstamp": second.at,
            "sample": job.sample,
        }

    return judge.ask_all(jobs, compare, progress)


def final_winner(first: Winner, second: Winner) -> Winner:
    """Return who won both games: a tie where the orders disagree or a game is a tie, error where one has no verdict."""
    if "error" in (first, second):
        return "error"
    return first if first == second else "tie"


def _winner(verdict: str | None, first: Winner, second: Winner) -> Winner:
    if verdict is None:
        return "error"
    return {"A": first, "B": second}.get(verdict, "tie")


def _jobs(benchmark: MtBench, question: Question, mine: Answer, theirs: Answer, judgments: int) -> list[_Job]:
    jobs = []
    for turn in range(1, len(question.turns) + 1):
        prompt = prompt_of(benchmark, "pair", question, turn)
        games = tuple(
            prompt.messages(**_fields(benchmark, question, turn, first, second))
            for first, second in ((mine, theirs), (theirs, mine))
        )
        jobs += [_Job(question, turn, sample, prompt, (games[0], games[1])) for sample in range(judgments)]
    return jobs


def _fields(benchmark: MtBench, question: Question, turn: int, first: Answer, second: Answer) -> dict[str, str]:
    fields = reference_fields(benchmark, question)
    if turn == 1:
        return fields | {"question": question.turns[0], "answer_a": first.turns[0], "answer_b": second.turns[0]}
    fields |= {f"question_{number}": text for number, text in enumerate(question.turns, 1)}
    fields |= {f"answer_a_{number}": text for number, text in enumerate(first.turns, 1)}
    return fields | {f"answer_b_{number}": text for number, text in enumerate(second.turns, 1)}
