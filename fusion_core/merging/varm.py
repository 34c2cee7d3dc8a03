"""VaRM, variation ratio merge: targets weigh as much as training changed them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.method import EntryMethod, WeightedMethod, Weights, ones_for_zeros
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.values import TensorValues


def build(spec: MergeSpec, targets: int) -> WeightedMethod | EntryMethod:
    """Read the method's settings: ``granularity``, ``variation``, ``weighting``, ``temperature``."""
    if spec.granularity == "parameter":
        return VarmByParameter(spec.variation)
    return Varm(spec.granularity, spec.variation, spec.temperature if spec.weighting == "softmax" else None)


class Varm(WeightedMethod):
    """Weigh each target, per tensor or group of tensors m, by its share of the change.

    v_jm = mean((phi_jm - theta_m)^2), or the mean of |phi_jm - theta_m|;
    w_jm = v_jm / sum_i v_im, or exp(v_jm / (temperature * mean_i v_im)) normalised; merged_m = sum_j w_jm phi_jm.
    Where no target changed, all weigh the same. Softmax divides by the mean change, so that scaling every delta
    leaves its weights as well.

    Source: FuseChat, arXiv 2402.16107, "Variation Ratio Merge" at matrix granularity.
    """

    def __init__(self, granularity: str, variation: Literal["square", "abs"], temperature: float | None):
        self.granularity = granularity
        self.variation = variation
        self.temperature = temperature

    def weigh(self, statistics: DeltaStatistics) -> Weights:
        """Return weights that sum to one."""
        change_T = statistics.squares if self.variation == "square" else statistics.absolute
        total = change_T.sum()
        if total == 0:
            return Weights(np.full(len(change_T), 1 / len(change_T)), pivot=0.0)
        weights_T = change_T / total
        if self.temperature is not None:
            # Below the largest, so that a tiny temperature gives minus infinity, whose exponential is zero.
            below_T = (weights_T - weights_T.max()) * len(weights_T)
            with np.errstate(over="ignore"):
                weights_T = np.exp(below_T / self.temperature)
            weights_T /= weights_T.sum()
        return Weights(weights_T, pivot=0.0)


class VarmByParameter(EntryMethod):
    """Weigh each entry by its own change: w_jn = (phi_jn - theta_n)^2 / sum_i (phi_in - theta_n)^2, or |...|.

    The report shows the mean weight per target over the tensor's entries. Entries that no target changed stay the
    pivot's, with equal weights.

    Source: FuseChat, arXiv 2402.16107, "Variation Ratio Merge" at parameter granularity.
    """

    needs_tensor = False

    def __init__(self, variation: Literal["square", "abs"]):
        self.variation = variation

    def prepare(self, values: TensorValues, statistics: DeltaStatistics) -> WeightSums:
        """Begin the sums of the weights."""
        return WeightSums(values.targets, values.entry.count)

    def merge(self, pivot_N: torch.Tensor, deltas_TN: torch.Tensor, prepared: WeightSums, start: int) -> torch.Tensor:
        """Return pivot + sum_j w_jn delta_jn."""
        # Relative to the largest, so that squares of tiny deltas do not vanish.
        largest_N = deltas_TN.abs().amax(dim=0)
        change_TN = (deltas_TN / ones_for_zeros(largest_N)).abs_()
        if self.variation == "square":
            change_TN.square_()
        total_N = change_TN.sum(dim=0)
        unchanged = len(total_N) - int(torch.count_nonzero(total_N))
        weights_TN = change_TN.div_(ones_for_zeros(total_N))
        prepared.add(start, weights_TN, unchanged)
        return deltas_TN.mul_(weights_TN).sum(dim=0).add_(pivot_N)

    def weights(self, prepared: WeightSums) -> np.ndarray:
        """Return the mean weights."""
        return prepared.means


class WeightSums:
    """Sums weights over parts of a tensor that threads finish in any order."""

    def __init__(self, targets: int, count: int):
        self._targets = targets
        self._count = count
        self._parts: dict[int, np.ndarray] = {}

    def add(self, start: int, weights_TN: torch.Tensor, unchanged: int) -> None:
        """Add the weights of the entries from ``start`` on; ``unchanged`` of them are zero and stand for equal ones."""
        self._parts[start] = weights_TN.sum(dim=1).double().cpu().numpy() + unchanged / self._targets

    @property
    def means(self) -> np.ndarray:
        """Mean weights, summed in the entries' order so that they do not depend on the threads."""
        if not self._parts:
            return np.full(self._targets, 1 / self._targets)
        return np.sum([self._parts[start] for start in sorted(self._parts)], axis=0) / self._count
