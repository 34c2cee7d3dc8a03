"""TIES: trim small deltas, elect a sign for each entry, average the deltas that agree with it."""

from __future__ import annotations

import numpy as np
import torch

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.method import EntryMethod, densities, ones_for_zeros
from fusion_core.merging.selection import Cutoff, select_largest, share_of
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.values import TensorValues


def build(spec: MergeSpec, targets: int) -> EntryMethod:
    """Read the method's settings: ``density``, ``weights`` (1 by default), ``normalize``, ``scaling_coefficient``."""
    weights_T = np.array(spec.weights or [1.0] * targets)
    return Ties(densities(spec, targets), weights_T, spec.divides, spec.scaling_coefficient)


class Ties(EntryMethod):
    """Merge the deltas tau_j = phi_j - theta where they agree.

    Trim: keep the ``density`` largest |tau_jn| of each tensor and target. Elect: gamma_n = sign(sum_j w_j tau_jn).
    Merge: merged_n = theta_n + lambda * sum_A w_j tau_jn / sum_A w_j over A = {j: sign(w_j tau_jn) = gamma_n}, or
    without the division.

    The number kept is exact, ties at the cut going to the first entries. Where the sum is exactly zero nobody is
    elected and the pivot's value stays, as the paper's equations say; mergekit elects plus there, and rounds
    the number kept down in binary (0.29 of 100 entries are 28). Trimming is by tensor, as in mergekit; the paper's
    code trims over the whole model.

    Source: Algorithm 1, arXiv 2306.01708.
    """

    def __init__(self, densities: list[float], weights_T: np.ndarray, divides: bool, scaling_coefficient: float):
        self.densities = densities
        self.weights_T = weights_T
        self.divides = divides
        self.scaling_coefficient = scaling_coefficient

    def prepare(self, values: TensorValues, statistics: DeltaStatistics) -> list[Cutoff]:
        """Find each target's cut-off; none where everything is kept."""
        if min(self.densities) == 1.0 or values.entry.count == 0:
            return []
        return select_largest(values, torch.abs, [share_of(values.entry.count, share) for share in self.densities])

    def merge(self, pivot_N: torch.Tensor, deltas_TN: torch.Tensor, prepared: list[Cutoff], start: int) -> torch.Tensor:
        """Trim, elect and average some entries."""
        for cutoff, delta_N in zip(prepared, deltas_TN, strict=False):
            cutoff.apply(delta_N.abs(), start, delta_N)
        weights_T = torch.as_tensor(self.weights_T, dtype=pivot_N.dtype, device=pivot_N.device)
        return torch.add(pivot_N, elect_and_add(deltas_TN, weights_T, self.divides), alpha=self.scaling_coefficient)

    def weights(self, prepared: list[Cutoff]) -> np.ndarray:
        """Return the factors of the trimmed deltas, before the average."""
        return self.weights_T * self.scaling_coefficient


def elect_and_add(deltas_TN: torch.Tensor, weights_T: torch.Tensor, divides: bool) -> torch.Tensor:
    """Add, at each entry, the weighted deltas whose sign is that of their sum: the last two steps of TIES.

    Parameters
    ----------
    deltas_TN : Tensor [T, N]
        Overwritten.
    weights_T : Tensor [T]
    divides : bool
        Whether to divide by the sum of the weights of those added.

    Returns
    -------
    Tensor [N]
        Zero where the weighted deltas sum to zero.
    """
    # Signs and masks as numbers: products of bool and float tensors are many times slower.
    weighted_TN = deltas_TN.mul_(weights_T[:, None])
    elected_N = weighted_TN.sum(dim=0).sign_()
    agrees_TN = (weighted_TN * elected_N).gt_(0)
    merged_N = weighted_TN.mul_(agrees_TN).sum(dim=0)
    if not divides:
        return merged_N
    weight_N = weights_T @ agrees_TN
    return merged_N.div_(ones_for_zeros(weight_N))
