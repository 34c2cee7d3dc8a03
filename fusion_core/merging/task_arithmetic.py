"""Task arithmetic: the pivot plus the scaled sum of the deltas."""

from __future__ import annotations

import numpy as np

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.method import WeightedMethod, Weights
from fusion_core.merging.statistics import DeltaStatistics


def build(spec: MergeSpec, targets: int) -> WeightedMethod:
    """Read the method's settings: ``weights`` (1 by default), ``normalize``, ``scaling_coefficient``."""
    weights_T = np.array(spec.weights or [1.0] * targets)
    if spec.divides:
        weights_T /= weights_T.sum()
    return TaskArithmetic(weights_T * spec.scaling_coefficient)


class TaskArithmetic(WeightedMethod):
    """Add the deltas: merged = theta + lambda * sum_j w_j (phi_j - theta), divided by sum_j w_j if asked for.

    Source: arXiv 2212.04089, section 2, with a weight per task vector as mergekit has it.
    """

    needs_statistics = False

    def __init__(self, factors_T: np.ndarray):
        self.weights = Weights(factors_T, pivot=1.0 - float(factors_T.sum()))

    def weigh(self, statistics: DeltaStatistics) -> Weights:
        """Return the same factors for every tensor."""
        return self.weights
