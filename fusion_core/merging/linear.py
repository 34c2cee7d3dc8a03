"""Linear: the weighted mean of the targets."""

from __future__ import annotations

import numpy as np

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.method import WeightedMethod, Weights
from fusion_core.merging.statistics import DeltaStatistics


def build(spec: MergeSpec, targets: int) -> WeightedMethod:
    """Read the method's settings: ``weights``, equal by default, and ``normalize``."""
    weights_T = np.array(spec.weights or [1 / targets] * targets)
    return Linear(weights_T / weights_T.sum() if spec.divides else weights_T)


class Linear(WeightedMethod):
    """Average the targets: merged = sum_j w_j phi_j / sum_j w_j, or without the division.

    Source: model soups, arXiv 2203.05482 (there with equal weights).
    """

    needs_statistics = False

    def __init__(self, weights_T: np.ndarray):
        self.weights_T = weights_T

    def weigh(self, statistics: DeltaStatistics) -> Weights:
        """Return the same weights for every tensor."""
        return Weights(self.weights_T, pivot=0.0)
