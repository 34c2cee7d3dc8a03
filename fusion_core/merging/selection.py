"""Exact selection of the largest scores of a tensor, without sorting it or holding its scores.

Shape legend: R rows of scores, N entries of a part of a tensor.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fusion_core.merging import kernels
from fusion_core.merging.values import TensorValues

# Scores [R, N], not negative, of the entries whose deltas [T, N] are given.
Score = Callable[[torch.Tensor], torch.Tensor]

SAMPLE = 1 << 16
# The sample's rank of the cut is off by more than this many standard deviations once in 15,000 times; then the bracket
# is widened and the pass repeated.
DEVIATIONS = 4.0


@dataclass(frozen=True)
class Cutoff:
    """Which entries of one row are selected: scores above ``value``, and the first ``quota`` entries at ``value``.

    Parameters
    ----------
    value : float
    quota : int
        Entries at ``value`` to select, in the tensor's order, so that the number selected is exact.
    starts : list of int
        First entries of the parts that the tensor was read in.
    ties_before : list of int
        Entries at ``value`` before each part.
    """

    value: float
    quota: int
    starts: list[int]
    ties_before: list[int]

    def apply(self, scores_N: torch.Tensor, start: int, values_N: torch.Tensor) -> None:
        """Set the entries of ``values_N`` [..., N] that are not selected to zero; overwrites the scores."""
        values_N.mul_(self.mask(scores_N, start))

    def mask(self, scores_N: torch.Tensor, start: int) -> torch.Tensor:
        """Return which entries of the part that begins at ``start`` are selected: ones and zeros [N] over the scores.

        Numbers, because torch multiplies by them many times faster than it fills by a bool mask.
        """
        part = bisect_left(self.starts, start)
        left = self.quota - self.ties_before[part]
        if left <= 0:
            return scores_N.gt_(self.value)
        is_last = part + 1 == len(self.starts)
        if not is_last and self.ties_before[part + 1] <= self.quota:
            return scores_N.ge_(self.value)
        first_ties = torch.nonzero(scores_N == self.value)[:left, 0]
        scores_N.gt_(self.value)[first_ties] = 1
        return scores_N


def share_of(count: int, share: float) -> int:
    """Return how many of ``count`` entries a share is: rounded down, at least one."""
    # 0.29 * 100 is 28.999999999999996.
    return min(count, max(1, math.floor(round(share * count, 6))))


def select_largest(values: TensorValues, score: Score, keeps: list[int]) -> list[Cutoff]:
    """Find the cut-offs that select exactly so many of the largest scores of each row; ties go to the first entries.

    Parameters
    ----------
    values : TensorValues
        A tensor with at least one entry.
    score : callable
        Deltas [T, N] to scores [R, N].
    keeps : list of int
        Entries to select in each row.

    Notes
    -----
    A sample brackets the value at the cut; one pass counts the scores above the bracket and collects the few inside
    it. The result does not depend on the sample.
    """
    sample_RS = _sample(values, score)
    cutoffs: dict[int, Cutoff] = {}
    deviations = DEVIATIONS
    while len(cutoffs) < len(sample_RS):
        rows = [row for row in range(len(sample_RS)) if row not in cutoffs]
        brackets = [_bracket(sample_RS[row], keeps[row] / values.entry.count, deviations) for row in rows]
        parts = [part for block in values.map_blocks(_Counter(values, score, rows, brackets)) for part in block]
        for number, row in enumerate(rows):
            cutoff = _cut([(start, counts[number]) for start, counts in parts], brackets[number], keeps[row])
            if cutoff is not None:
                cutoffs[row] = cutoff
        deviations *= 4
    return [cutoffs[row] for row in range(len(sample_RS))]


@dataclass(frozen=True)
class _Count:
    """Scores of one part of one row: how many above the bracket, at its ends, and those inside."""

    above: int
    at_high: int
    at_low: int
    inside: np.ndarray


class _Counter:
    def __init__(self, values: TensorValues, score: Score, rows: list[int], brackets: list[tuple[float, float]]):
        self.values = values
        self.score = score
        self.rows = rows
        self.brackets = brackets

    def __call__(self, start: int, stop: int) -> list[tuple[int, list[_Count]]]:
        parts = []
        for first, last in self.values.chunks(start, stop):
            scores_RN = self.score(self.values.pivot_and_deltas(first, last)[1])
            counts = [
                _count(scores_RN[row], low, high) for row, (low, high) in zip(self.rows, self.brackets, strict=True)
            ]
            parts.append((first, counts))
        return parts


def _count(scores_N: torch.Tensor, low: float, high: float) -> _Count:
    if scores_N.device.type == "cpu" and scores_N.dtype == torch.float32:
        inside_N = np.empty(len(scores_N) + 1, dtype=np.float32)
        above, at_high, at_low, inside = kernels.count_bracket(
            scores_N.numpy(), np.float32(low), np.float32(high), inside_N
        )
        return _Count(above, at_high, at_low, inside_N[:inside].copy())
    is_inside_N = (scores_N > low) & (scores_N < high)
    return _Count(
        int(torch.count_nonzero(scores_N > high)),
        int(torch.count_nonzero(scores_N == high)),
        int(torch.count_nonzero(scores_N == low)) if low < high else 0,
        scores_N[is_inside_N].cpu().numpy(),
    )


def _cut(parts: list[tuple[int, _Count]], bracket: tuple[float, float], keep: int) -> Cutoff | None:
    low, high = bracket
    above = sum(count.above for _, count in parts)
    at_high = sum(count.at_high for _, count in parts)
    inside = sum(len(count.inside) for _, count in parts)
    at_low = sum(count.at_low for _, count in parts)
    left = keep - above
    if left <= 0 or left > at_high + inside + at_low:
        return None
    if left <= at_high:
        return _cutoff(high, left, parts, [count.at_high for _, count in parts])
    left -= at_high
    if left <= inside:
        collected = np.concatenate([count.inside for _, count in parts])
        value = np.partition(collected, len(collected) - left)[len(collected) - left]
        quota = left - int(np.count_nonzero(collected > value))
        return _cutoff(float(value), quota, parts, [int(np.count_nonzero(c.inside == value)) for _, c in parts])
    return _cutoff(low, left - inside, parts, [count.at_low for _, count in parts])


def _cutoff(value: float, quota: int, parts: list[tuple[int, _Count]], ties: list[int]) -> Cutoff:
    before = [0, *np.cumsum(ties).tolist()[:-1]]
    return Cutoff(value, quota, [start for start, _ in parts], before)


def _sample(values: TensorValues, score: Score) -> torch.Tensor:
    count = values.entry.count
    # Random rather than every n-th: rows of a matrix have a period.
    drawn_S = np.random.default_rng(0).integers(0, count, SAMPLE)
    places_S = np.sort(drawn_S) if count > SAMPLE else np.arange(count)
    return score(values.deltas_at(places_S)).sort(dim=1, descending=True).values.cpu()


def _bracket(sorted_S: torch.Tensor, share: float, deviations: float) -> tuple[float, float]:
    size = len(sorted_S)
    margin = deviations * math.sqrt(size * share * (1.0 - share)) + 1
    first = math.floor(share * size - margin)
    last = math.ceil(share * size + margin)
    high = float(sorted_S[first]) if first >= 0 else math.inf
    low = float(sorted_S[last]) if last < size else -1.0
    return low, high
