"""Questions that one model answers rightly and another wrongly, with what all models answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion_core.evaluation.benchmark import BenchmarkItem, BenchmarkResult
from fusion_core.record import Record

LONGEST_TEXT_CHARACTERS = 1200
# Benchmarks whose answers are worth reading side by side.
SPOKEN = ("exact_match", "pass_at_1")


class ShownAnswer(Record):
    """What one model answered, what was read out of it, and whether that is right."""

    model: str
    answer: str
    found: str
    right: bool
    note: str = ""


class AnswerChange(Record):
    """One question with the answers of all models that were asked."""

    benchmark: str
    question: str
    expected: str
    answers: tuple[ShownAnswer, ...]


class AnswerChanges(Record):
    """Questions that the model gained (only it is right) and lost (only the baseline is), and how many there are."""

    model: str
    baseline: str
    gained: tuple[AnswerChange, ...]
    lost: tuple[AnswerChange, ...]
    gains: int
    losses: int


def changed_answers(
    results: Mapping[str, Sequence[BenchmarkResult]], model: str, baseline: str, shown: Sequence[str], count: int = 2
) -> AnswerChanges | None:
    """Find questions that a model got right and the baseline wrong, and the other way round.

    Parameters
    ----------
    results : mapping from model name to its results
    model, baseline : str
    shown : sequence of str
        Models whose answers stand beside each other, in this order.
    count : int
        Questions of each benchmark on each side, at most.

    Returns
    -------
    AnswerChanges or None
        None where not both models have answered the same benchmark.
    """
    answered = {
        name: {(result.benchmark, result.name): result for result in several if result.benchmark in SPOKEN}
        for name, several in results.items()
    }
    common = [key for key in answered.get(model, {}) if key in answered.get(baseline, {})]
    if not common:
        return None
    gained: list[AnswerChange] = []
    lost: list[AnswerChange] = []
    gains = losses = 0
    for key in common:
        items = {name: {item.id: item for item in found[key].items} for name, found in answered.items() if key in found}
        both = [one for one in items[model] if one in items[baseline]]
        better = [one for one in both if _right(items[model][one]) and not _right(items[baseline][one])]
        worse = [one for one in both if _right(items[baseline][one]) and not _right(items[model][one])]
        gains, losses = gains + len(better), losses + len(worse)
        gained += [_change(key[1], one, items, shown) for one in better[:count]]
        lost += [_change(key[1], one, items, shown) for one in worse[:count]]
    return AnswerChanges(
        model=model, baseline=baseline, gained=tuple(gained), lost=tuple(lost), gains=gains, losses=losses
    )


def _change(
    benchmark: str, item_id: str, items: Mapping[str, Mapping[str, BenchmarkItem]], shown: Sequence[str]
) -> AnswerChange:
    asked = [name for name in shown if item_id in items.get(name, {})]
    first = items[asked[0]][item_id]
    return AnswerChange(
        benchmark=benchmark,
        question=first.question[:LONGEST_TEXT_CHARACTERS],
        expected=first.expected,
        answers=tuple(
            ShownAnswer(
                model=name,
                answer=items[name][item_id].answer[:LONGEST_TEXT_CHARACTERS],
                found=items[name][item_id].found,
                right=_right(items[name][item_id]),
                note=items[name][item_id].note,
            )
            for name in asked
        ),
    )


def _right(item: BenchmarkItem) -> bool:
    return bool(item.scores) and item.scores[0] == 1.0
