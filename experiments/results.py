"""What a table found: every score with the run it comes from, and the differences that matter with their intervals.

Legend: D dialogues, R resamples, S domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_core.evaluation.bootstrap import percentile_interval, resampled_sums
from fusion_core.evaluation.common_bytes import common_coverage
from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.record import Record
from fusion_core.report.sweep_table import MEAN_OF_DOMAINS, SweepCell, over_seeds

RESAMPLES = 4000

# Label and seed; None for a model that no seed changes.
Key = tuple[str, int | None]


class Row(Record):
    """One model with one seed: nats per response byte by domain and as their mean, and the run that scored it."""

    label: str
    seed: int | None
    nats_per_byte: dict[str, float]
    run: str


class Difference(Record):
    """How two lines of a table differ in one column: below zero, the first one is better.

    Parameters
    ----------
    label, baseline, domain : str
    seeds : SweepCell
        Mean over seeds of the difference at equal seeds, with Student's interval.
    low, high : float
        95 % interval of the same mean by paired bootstrap over dialogues.
    """

    label: str
    baseline: str
    domain: str
    seeds: SweepCell
    low: float
    high: float


class Results(Record):
    """One table as it was measured."""

    table: str
    question: str
    seeds: tuple[int, ...]
    dialogues: dict[str, int]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    run: str
    code: str


@dataclass(frozen=True)
class Nats:
    """Nats of models on the same dialogues.

    Parameters
    ----------
    models : mapping from label to seed to float64 [D]
    response_bytes : float64 [D]
    strata : int64 [D]
        Domain of each dialogue, an index into ``domains``.
    domains : tuple of str
    """

    models: Mapping[str, Mapping[int | None, np.ndarray]]
    response_bytes: np.ndarray
    strata: np.ndarray
    domains: tuple[str, ...]

    def per_byte(self, nats_D: np.ndarray) -> dict[str, float]:
        """Nats per byte of each domain, and their mean."""
        sums = [np.bincount(self.strata, weights=column) for column in (nats_D, self.response_bytes)]
        by_domain = sums[0] / sums[1]
        return {MEAN_OF_DOMAINS: float(by_domain.mean())} | dict(zip(self.domains, by_domain.tolist(), strict=True))


def gather(scores: Mapping[Key, HeldOutScores]) -> Nats:
    """Bring all models' scores to what all of them read of each dialogue."""
    named = {f"{label}\n{seed}": one for (label, seed), one in scores.items()}
    covered, _ = common_coverage(named)
    nats_DM = np.array([one.nats for one in covered], np.float64)
    models: dict[str, dict[int | None, np.ndarray]] = {}
    for (label, seed), column in zip(scores, nats_DM.T, strict=True):
        models.setdefault(label, {})[seed] = column
    domains, strata_D = np.unique([one.domain for one in covered], return_inverse=True)
    return Nats(models, np.array([one.bytes for one in covered], np.float64), strata_D, tuple(map(str, domains)))


def differences(nats: Nats, label: str, baseline: str, *, resamples: int = RESAMPLES) -> list[Difference]:
    """Compare two models column by column.

    A model without seeds, such as the pivot, is compared with every seed of the other.
    """
    pairs = _pairs(nats.models[label], nats.models[baseline])
    if not pairs:
        return []
    per_seed = [(nats.per_byte(a_D), nats.per_byte(b_D)) for a_D, b_D in pairs]
    means = [np.mean(side, axis=0) for side in zip(*pairs, strict=True)]
    sums_RSM = resampled_sums(np.column_stack([*means, nats.response_bytes]), nats.strata, resamples, seed=0)
    ratios_RS = (sums_RSM[:, :, 0] - sums_RSM[:, :, 1]) / sums_RSM[:, :, 2]
    draws = {MEAN_OF_DOMAINS: ratios_RS.mean(axis=1)} | dict(zip(nats.domains, ratios_RS.T, strict=True))
    found = []
    for domain, draws_R in draws.items():
        low, high = percentile_interval(draws_R)
        cell = over_seeds([a[domain] - b[domain] for a, b in per_seed])
        found.append(Difference(label=label, baseline=baseline, domain=domain, seeds=cell, low=low, high=high))
    return found


def _pairs(
    first: Mapping[int | None, np.ndarray], second: Mapping[int | None, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    if None in second:
        return [(nats_D, second[None]) for nats_D in first.values()]
    if None in first:
        return [(first[None], nats_D) for nats_D in second.values()]
    return [(first[seed], second[seed]) for seed in first if seed in second]


def summary(results: Results) -> dict[str, dict[str, SweepCell]]:
    """Label to column to mean over seeds with its interval."""
    labels = list(dict.fromkeys(row.label for row in results.rows))
    columns = (MEAN_OF_DOMAINS, *results.dialogues)
    return {label: {name: over_seeds(_column(results.rows, label, name)) for name in columns} for label in labels}


def _column(rows: Sequence[Row], label: str, name: str) -> list[float]:
    return [row.nats_per_byte[name] for row in rows if row.label == label]
