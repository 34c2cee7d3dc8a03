"""What a benchmark without a judge leaves: every item's answer and scores, and the means of its metrics.

Metrics are named ``<benchmark>/<part>``, such as ``exact_match/gsm8k`` or ``chat_sanity/no_loops``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fusion_core.dialogues.rows import read_rows
from fusion_core.dialogues.turns import MalformedRowError
from fusion_core.errors import DialogueError, EvaluationError
from fusion_core.record import Record


class Metric(Record):
    """One figure of a benchmark.

    Parameters
    ----------
    name : str
        Such as ``exact_match/gsm8k``.
    mean : float or None
        Over the items that have a score; None where none has.
    n : int
        Those items.
    higher_is_better : bool
    is_mean_of_items : bool
        Whether items carry its scores; False for what is no mean, such as a corpus-level F1.
    standard_error : float or None
        Where the benchmark states one and items carry no scores.
    """

    name: str
    mean: float | None
    n: int
    higher_is_better: bool = True
    is_mean_of_items: bool = True
    standard_error: float | None = None


class BenchmarkItem(Record):
    """One question, what the model answered, and how each metric scores it.

    Parameters
    ----------
    id : str
        The same for every model.
    question, answer : str
        Empty where the benchmark does not let the model speak.
    found, expected : str
        What was read out of the answer, and what is right.
    scores : tuple of float or None
        In the order of the benchmark's metrics that are means of items; None where a metric says nothing of this item.
    note : str
        Why it failed, where that is known.
    """

    id: str
    question: str = ""
    answer: str = ""
    found: str = ""
    expected: str = ""
    scores: tuple[float | None, ...]
    note: str = ""


class BenchmarkResult(Record):
    """One model on one benchmark.

    Parameters
    ----------
    benchmark : str
        exact_match, pass_at_1, chat_sanity or lm_eval.
    name : str
        What the recipe calls it.
    model_name : str
    version : str
        Of the task's definition.
    few_shot : int
        Worked examples before each question.
    metrics : tuple of Metric
        The one that counts first.
    items : tuple of BenchmarkItem
    unfinished : int
        Answers that were cut off.
    protections : dict
        What held generated code back, where any was run.
    data_digest : str
        Of the questions, where they come from a file.
    """

    benchmark: str
    name: str
    model_name: str
    version: str
    few_shot: int = 0
    metrics: tuple[Metric, ...]
    items: tuple[BenchmarkItem, ...]
    unfinished: int = 0
    protections: dict[str, str] = Field(default_factory=dict)
    data_digest: str = ""

    @model_validator(mode="after")
    def _score_per_metric(self) -> BenchmarkResult:
        width = len(self.item_metrics)
        wrong = next((item for item in self.items if len(item.scores) != width), None)
        if wrong is not None:
            raise ValueError(f"item {wrong.id} has {len(wrong.scores)} scores for {width} metrics")
        return self

    @property
    def item_metrics(self) -> tuple[Metric, ...]:
        """The metrics that are means over items, in the order of the items' scores."""
        return tuple(metric for metric in self.metrics if metric.is_mean_of_items)


def mean_of_items(name: str, items: tuple[BenchmarkItem, ...], position: int = 0) -> Metric:
    """Return a metric as the mean of one of the items' scores."""
    scores = [score for item in items if (score := item.scores[position]) is not None]
    return Metric(name=name, mean=sum(scores) / len(scores) if scores else None, n=len(scores))


def read_benchmark_rows(path: Path, *, skip: int = 0, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield a data file's rows after the first ``skip``, at most ``limit`` of them, each with its number.

    Raises
    ------
    EvaluationError
        If the file is missing or broken, a row is no object, or none is left.
    """
    if not path.is_file():
        raise EvaluationError(f"The benchmark's data file {path} does not exist; correct its `path` in the recipe.")
    taken = 0
    try:
        for row in read_rows(path):
            if row.number <= skip:
                continue
            if limit is not None and taken == limit:
                return
            if isinstance(row.value, MalformedRowError):
                raise EvaluationError(f"{path}, row {row.number}: {row.value.reason}; correct it.")
            if not isinstance(row.value, dict):
                raise EvaluationError(
                    f"{path}, row {row.number}: it is {type(row.value).__name__}, expected an object with fields."
                )
            taken += 1
            yield row.number, row.value
    except DialogueError as error:
        raise EvaluationError(f"A benchmark cannot be read: {error}") from error
    if not taken:
        raise EvaluationError(f"{path} has no row after the first {skip}; lower `skip`.")


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """Return a text of a row, or say which one lacks it."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        known = ", ".join(repr(name) for name in list(row)[:8]) or "none"
        raise EvaluationError(f"{where}: it needs a text in `{field}`; its fields are {known}.")
    return value
