"""Scores that a judge model gave: what the report draws and the promotion gates read.

Metrics are named ``mt_bench/overall``, ``mt_bench/<category>``, ``mt_bench/turn_1``, ``mt_bench/turn_2``,
``alpaca_eval/win_rate`` and ``alpaca_eval/length_controlled_win_rate``.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from fusion_core.evaluation.decision import Measure
from fusion_core.record import Record

# No question categories: the mean, the turns of all categories together, and what a win rate is made of.
SUMMARIES = frozenset(
    {"overall", "turn_1", "turn_2", "win_rate", "wins", "ties", "losses", "length_controlled_win_rate"}
)
LOWER_IS_BETTER = frozenset({"losses"})
# More ties may stand for fewer losses or for fewer wins.
NEITHER_IS_BETTER = frozenset({"ties"})


class Judge(Record):
    """Who judged, and how: scores of different judges do not compare.

    Parameters
    ----------
    model : str
        The name under which the endpoint knows it.
    endpoint : str
        Host of the endpoint.
    temperature : float
    judgments : int
        Judgments asked for of each answer.
    """

    model: str
    endpoint: str
    temperature: float = 0.0
    judgments: int = 1

    def __str__(self) -> str:
        repeated = "" if self.judgments == 1 else f", {self.judgments} judgments of each answer"
        return f"{self.model} at {self.endpoint}{repeated}"


class JudgedMean(Record):
    """A mean over answers, with the 95 % interval of a bootstrap over questions.

    Parameters
    ----------
    mean : float or None
        MT-Bench: 1 to 10; win rates: percent. None where every judgment is missing.
    low, high : float or None
        None below five questions, where an interval would be far too narrow.
    n : int
        Judgments behind the mean.
    missing : int
        Judgments that were asked for, also again, and gave no rating; no part of the mean.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int
    missing: int = 0


class JudgedDifference(Record):
    """How a model's mean differs from the baseline's on the questions that both have judgments of."""

    difference: float | None
    low: float | None = None
    high: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds zero, or there is none: then nothing is known to differ."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


class JudgeCosts(Record):
    """What judging took: ``reused`` judgments were there already and cost nothing now."""

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused: int = 0


class JudgedScores(Record):
    """One model's judged metrics, and their differences to the baseline (none for the baseline itself).

    Parameters
    ----------
    model : str
    means : dict
        Metric name to mean, ``<benchmark>/overall`` (or ``/win_rate``) first.
    differences : dict
        The same names; empty for the baseline and for benchmarks that compare with it in each judgment.
    unfinished_answers : int
        Answers that were cut off at the largest number of new tokens.
    """

    model: str
    means: dict[str, JudgedMean]
    differences: dict[str, JudgedDifference] = Field(default_factory=dict)
    unfinished_answers: int = 0


class JudgedTable(Record):
    """Several models under one judge.

    Parameters
    ----------
    benchmark : str
        mt_bench or alpaca_eval.
    benchmark_digest : str
        Of questions, references and judge prompts.
    questions : int
    judge : Judge
    baseline : str
        The model that differences are taken to, or that answers are compared with.
    rows : tuple of JudgedScores
    costs : JudgeCosts
    resamples : int
        Draws behind the intervals.
    """

    benchmark: str
    benchmark_digest: str
    questions: int
    judge: Judge
    baseline: str
    rows: tuple[JudgedScores, ...]
    costs: JudgeCosts = JudgeCosts()
    resamples: int

    @model_validator(mode="after")
    def _equal_metrics(self) -> JudgedTable:
        if len({tuple(row.means) for row in self.rows}) > 1:
            raise ValueError("the rows of a judged table must have the same metrics in the same order")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of the columns."""
        return tuple(self.rows[0].means) if self.rows else ()

    @property
    def categories(self) -> tuple[str, ...]:
        """Metrics of the question categories alone, such as ``mt_bench/writing``: the axes of a radar chart."""
        return tuple(name for name in self.metrics if name.partition("/")[2] not in SUMMARIES)

    @property
    def scale(self) -> str:
        """What makes two tables comparable: the same questions under the same judge."""
        judge = self.judge
        return (
            f"{self.benchmark} {self.benchmark_digest[:12]}, judge {judge.model} at {judge.endpoint}, temperature "
            f"{judge.temperature:g}, {judge.judgments} judgments"
        )

    def measures(self, model: str) -> dict[str, Measure]:
        """Return one model's metrics as the promotion's gates read them; what has no judgment is left out."""
        row = next((row for row in self.rows if row.model == model), None)
        return {
            name: Measure(
                mean=found.mean,
                low=found.low,
                high=found.high,
                scale=self.scale,
                higher_is_better=higher_is_better(name),
            )
            for name, found in (row.means if row is not None else {}).items()
            if found.mean is not None
        }

    def row(self, model: str) -> JudgedScores:
        """Return one model's line."""
        return next(row for row in self.rows if row.model == model)


def higher_is_better(metric: str) -> bool | None:
    """Whether more of a judged metric is better; None where neither is."""
    part = metric.partition("/")[2]
    return None if part in NEITHER_IS_BETTER else part not in LOWER_IS_BETTER
