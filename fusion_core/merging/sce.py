"""SCE: select the entries in which the targets differ most, calculate weights from them, erase minority signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.method import EntryMethod, ones_for_zeros
from fusion_core.merging.selection import Cutoff, select_largest, share_of
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.values import TensorValues


def build(spec: MergeSpec, targets: int) -> EntryMethod:
    """Read the method's setting: ``select_top_k``."""
    return Sce(spec.select_top_k)


# Mean squares of deltas outside of these are scaled before float32 squares are taken of them.
SMALLEST_SQUARE, LARGEST_SQUARE = 2.0**-60, 2.0**60


@dataclass(frozen=True)
class Selected:
    """What was selected of a tensor (None: everything), by variances of deltas times ``scale``, and the weights [T]."""

    cutoff: Cutoff | None
    weights: np.ndarray
    scale: float = 1.0


class Sce(EntryMethod):
    """Merge the deltas delta_j = phi_j - theta of each matrix.

    Select: keep the ``select_top_k`` share of entries with the largest variance over the targets, drop the others
    from every delta, so that they stay the pivot's. Calculate: eta_j = sum_n delta_jn^2 / sum_i sum_n delta_in^2 over
    the selected entries; equal where nothing was selected. Erase: drop the entries whose sign is not that of
    sum_j delta_jn. merged_n = theta_n + sum_j eta_j delta_jn / sum_j eta_j over what is left at the entry.

    The number selected is exact, ties at the cut going to the first entries, but entries in which all targets agree
    are never selected while others differ. Where they agree everywhere (as one target does with itself) variance
    has nothing to say and everything is selected. A sum of exactly zero has no minority, so nothing is erased.

    mergekit differs on purpose or by accident: its share is of the entries with a variance other than zero; weights
    become equal where the mean square is below 1e-6, which holds for most real fine-tunings; a sum of zero counts as
    plus.

    Source: SCE of FuseChat's second version, arXiv 2408.07990; the final division as in mergekit's SCE.
    """

    def __init__(self, select_top_k: float):
        self.select_top_k = select_top_k

    def prepare(self, values: TensorValues, statistics: DeltaStatistics) -> Selected:
        """Select, and calculate the weights."""
        cutoff = None
        scale = _scale(statistics)
        if self.select_top_k < 1.0 and values.targets > 1 and values.entry.count > 0:
            cutoff = self._select(values, scale)
        if cutoff is None:
            return Selected(None, _shares(statistics.squares))
        squares = values.map_blocks(lambda start, stop: _selected_squares(values, cutoff, scale, start, stop))
        return Selected(cutoff, _shares(np.sum(squares, axis=0)), scale)

    def merge(self, pivot_N: torch.Tensor, deltas_TN: torch.Tensor, prepared: Selected, start: int) -> torch.Tensor:
        """Drop what was not selected, erase minorities and add the rest."""
        if prepared.cutoff is not None:
            prepared.cutoff.apply(_variance(deltas_TN, prepared.scale)[0], start, deltas_TN)
        direction_N = deltas_TN.sum(dim=0).sign_()
        # Masks as numbers: products of bool and float tensors are many times slower.
        sign_TN = deltas_TN.sign()
        kept_TN = (sign_TN * direction_N).clamp_(min=0)
        # In a draw all stay.
        kept_TN.addcmul_(sign_TN.abs_(), direction_N.eq_(0))
        weights_T = torch.as_tensor(prepared.weights, dtype=pivot_N.dtype, device=pivot_N.device)
        weight_N = weights_T @ kept_TN
        merged_N = weights_T @ kept_TN.mul_(deltas_TN)
        return merged_N.div_(ones_for_zeros(weight_N)).add_(pivot_N)

    def weights(self, prepared: Selected) -> np.ndarray:
        """Return the weights of the matrix."""
        return prepared.weights

    def _select(self, values: TensorValues, scale: float) -> Cutoff | None:
        score = partial(_variance, scale=scale)
        (cutoff,) = select_largest(values, score, [share_of(values.entry.count, self.select_top_k)])
        if cutoff.value > 0:
            return cutoff
        # Fewer entries vary than may be selected: take those, and everything where none does.
        varying = Cutoff(0.0, 0, cutoff.starts, cutoff.ties_before)
        return varying if any(values.map_blocks(lambda start, stop: _varies(values, scale, start, stop))) else None


def _scale(statistics: DeltaStatistics) -> float:
    """Return a power of two that keeps squares of the deltas within float32: one for all but tiny or huge deltas."""
    mean_square = float(statistics.squares.sum()) / max(statistics.count, 1)
    if mean_square == 0 or SMALLEST_SQUARE <= mean_square <= LARGEST_SQUARE:
        return 1.0
    return 2.0 ** min(-round(math.log2(mean_square) / 2), 126)


def _variance(deltas_TN: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the variances [1, N] over the targets, times T squared and ``scale`` squared."""
    # From the first target, so that it is exactly zero where all agree; without a division, so that deltas of few bits,
    # as those of bf16 are, tie exactly.
    apart_TN = deltas_TN - deltas_TN[0]
    if scale != 1.0:
        apart_TN.mul_(scale)
    total_N = apart_TN.sum(dim=0)
    return apart_TN.square_().sum(dim=0).mul_(len(deltas_TN)).sub_(total_N.square_())[None]


def _varies(values: TensorValues, scale: float, start: int, stop: int) -> bool:
    return any(
        bool((_variance(values.pivot_and_deltas(first, last)[1], scale) > 0).any())
        for first, last in values.chunks(start, stop)
    )


def _selected_squares(values: TensorValues, cutoff: Cutoff, scale: float, start: int, stop: int) -> np.ndarray:
    squares_T = np.zeros(values.targets)
    for first, last in values.chunks(start, stop):
        _, deltas_TN = values.pivot_and_deltas(first, last)
        cutoff.apply(_variance(deltas_TN, scale)[0], first, deltas_TN)
        if scale != 1.0:
            # Of shares, the scale is without effect.
            deltas_TN.mul_(scale)
        squares_T += deltas_TN.square_().sum(dim=1, dtype=torch.float64).cpu().numpy()
    return squares_T


def _shares(squares_T: np.ndarray) -> np.ndarray:
    total = squares_T.sum()
    return squares_T / total if total > 0 else np.full(len(squares_T), 1 / len(squares_T))
