"""Several models on the same benchmarks: means with intervals, and paired differences to a baseline.

Legend: I items, M models, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from fusion_core.evaluation.benchmark import BenchmarkResult, Metric
from fusion_core.evaluation.bootstrap import CONFIDENCE, FEWEST_FOR_INTERVAL, percentile_interval, resampled_sums
from fusion_core.evaluation.decision import Measure
from fusion_core.record import Record

NORMAL_QUANTILE = 1.959964


class Interval(Record):
    """A figure and its 95 % interval; None where it is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_known_to_differ(self) -> bool:
        """Whether the interval, of a difference, leaves zero out."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


class BenchmarkColumn(Record):
    """One metric.

    Parameters
    ----------
    metric : str
        Such as ``exact_match/gsm8k``.
    benchmark, name : str
    version : str
        Of the task's definition.
    few_shot : int
    items : int
    higher_is_better : bool
    is_share : bool
        Whether it lies between 0 and 1, and reads as a percentage.
    digest : str
        Of the data behind it.
    """

    metric: str
    benchmark: str
    name: str
    version: str
    few_shot: int
    items: int
    higher_is_better: bool = True
    is_share: bool = True
    digest: str = ""

    @property
    def scale(self) -> str:
        """What two scores must share to be compared."""
        return f"{self.version}, {self.few_shot}-shot, {self.items} items {self.digest[:12]}".strip()


class BenchmarkRow(Record):
    """One model: metric name to mean, and to the difference from the baseline (none for the baseline itself)."""

    model: str
    means: dict[str, Interval]
    differences: dict[str, Interval] = Field(default_factory=dict)
    unfinished: dict[str, int] = Field(default_factory=dict)


class BenchmarkTable(Record):
    """Models and metrics; ``protections`` says what held back the code that was run."""

    baseline: str
    columns: tuple[BenchmarkColumn, ...]
    rows: tuple[BenchmarkRow, ...]
    resamples: int
    protections: dict[str, str] = Field(default_factory=dict)

    def best(self, metric: str) -> frozenset[str]:
        """Return the models with the best mean of a metric; none where all are equal."""
        column = next(column for column in self.columns if column.metric == metric)
        values = {row.model: row.means[metric].value for row in self.rows if metric in row.means}
        if len(set(values.values())) < 2:
            return frozenset()
        best = max(values.values()) if column.higher_is_better else min(values.values())
        return frozenset(model for model, value in values.items() if value == best)

    def measures(self, model: str) -> dict[str, Measure]:
        """Return one model's metrics as the promotion's gates read them."""
        row = next((row for row in self.rows if row.model == model), None)
        if row is None:
            return {}
        columns = {column.metric: column for column in self.columns}
        return {
            metric: Measure(
                mean=mean.value,
                low=mean.low,
                high=mean.high,
                scale=columns[metric].scale,
                higher_is_better=columns[metric].higher_is_better,
            )
            for metric, mean in row.means.items()
        }


def tabulate(
    results: Mapping[str, Sequence[BenchmarkResult]], baseline: str, *, resamples: int = 2000, seed: int = 0
) -> BenchmarkTable | None:
    """Put the results of several models side by side.

    The interval of a mean of zeros and ones is Wilson's (JASA 1927), of another mean a bootstrap over items, of a
    figure that is no mean its standard error's. Differences are drawn pair by pair over the items that both models
    have; where no draw differs from another, nothing is known and there is no interval.

    Parameters
    ----------
    results : mapping from model name to its results
        In the order of the table's lines.
    baseline : str
    resamples, seed : int

    Returns
    -------
    BenchmarkTable or None
        None without results.
    """
    columns: dict[str, BenchmarkColumn] = {}
    found: dict[str, dict[str, tuple[BenchmarkResult, Metric]]] = {model: {} for model in results}
    for model, several in results.items():
        for result in several:
            for metric in result.metrics:
                if metric.mean is None:
                    continue
                found[model][metric.name] = (result, metric)
                columns.setdefault(metric.name, _column(result, metric))
    if not columns:
        return None
    rows = []
    for model, metrics in found.items():
        differences = {
            name: _difference(metrics[name], found[baseline][name], name, resamples, seed)
            for name in metrics
            if model != baseline and name in found.get(baseline, {})
        }
        rows.append(
            BenchmarkRow(
                model=model,
                means={name: _mean(*metrics[name], resamples, seed) for name in columns if name in metrics},
                differences=differences,
                unfinished={result.name: result.unfinished for result in results[model] if result.unfinished},
            )
        )
    protections = next((r.protections for several in results.values() for r in several if r.protections), {})
    return BenchmarkTable(
        baseline=baseline,
        columns=tuple(columns.values()),
        rows=tuple(row for row in rows if row.means),
        resamples=resamples,
        protections=protections,
    )


def _column(result: BenchmarkResult, metric: Metric) -> BenchmarkColumn:
    scores = _scores(result, metric).values()
    return BenchmarkColumn(
        metric=metric.name,
        benchmark=result.benchmark,
        name=result.name,
        version=result.version,
        few_shot=result.few_shot,
        items=metric.n,
        higher_is_better=metric.higher_is_better,
        is_share=bool(scores) and all(0.0 <= score <= 1.0 for score in scores),
        digest=result.data_digest,
    )


def _scores(result: BenchmarkResult, metric: Metric) -> dict[str, float]:
    names = [one.name for one in result.item_metrics]
    if metric.name not in names:
        return {}
    position = names.index(metric.name)
    return {item.id: score for item in result.items if (score := item.scores[position]) is not None}


def _mean(result: BenchmarkResult, metric: Metric, resamples: int, seed: int) -> Interval:
    assert metric.mean is not None
    scores_I = np.array(list(_scores(result, metric).values()))
    if len(scores_I) == 0 and metric.standard_error is not None:
        half = NORMAL_QUANTILE * metric.standard_error
        return Interval(value=metric.mean, low=metric.mean - half, high=metric.mean + half)
    if len(scores_I) < FEWEST_FOR_INTERVAL:
        return Interval(value=metric.mean)
    if np.isin(scores_I, (0.0, 1.0)).all():
        low, high = wilson_interval(int(scores_I.sum()), len(scores_I))
        return Interval(value=metric.mean, low=low, high=high)
    return _drawn(metric.mean, scores_I, resamples, seed)


def _difference(
    ours: tuple[BenchmarkResult, Metric],
    theirs: tuple[BenchmarkResult, Metric],
    name: str,
    resamples: int,
    seed: int,
) -> Interval:
    assert ours[1].mean is not None and theirs[1].mean is not None
    mine, others = _scores(*ours), _scores(*theirs)
    common = [item for item in mine if item in others]
    if len(common) < FEWEST_FOR_INTERVAL:
        return Interval(value=ours[1].mean - theirs[1].mean)
    gains_I = np.array([mine[item] - others[item] for item in common])
    return _drawn(float(gains_I.mean()), gains_I, resamples, seed)


def _drawn(value: float, values_I: np.ndarray, resamples: int, seed: int) -> Interval:
    sums_R = resampled_sums(values_I[:, None], np.zeros(len(values_I), dtype=np.int64), resamples, seed)[:, 0, 0]
    low, high = percentile_interval(sums_R / len(values_I), CONFIDENCE)
    return Interval(value=value) if low == high else Interval(value=value, low=low, high=high)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, which is sensible at 0 and 1 too (Wilson, JASA 22, 1927)."""
    share, z2 = successes / n, NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
