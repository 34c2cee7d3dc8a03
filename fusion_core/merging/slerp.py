"""SLERP: along the arc between the targets' tensors instead of the straight line."""

from __future__ import annotations

import numpy as np

from fusion_core.errors import MergeError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.method import WeightedMethod, Weights
from fusion_core.merging.statistics import DeltaStatistics

# Tensors with a larger cosine lie on a line as far as float32 can tell, and are interpolated on it.
MAX_COSINE = 0.9995


def build(spec: MergeSpec, targets: int) -> WeightedMethod:
    """Read the method's settings: ``t`` for two targets, or ``weights``, equal by default."""
    if spec.t is None:
        return Slerp(np.array(spec.weights or [1.0] * targets))
    if targets != 2:
        raise MergeError(f"`t` lies between two targets and there are {targets}; give `weights`, one for each.")
    return Slerp(np.array([1.0 - spec.t, spec.t]))


class Slerp(WeightedMethod):
    """Interpolate each tensor on the sphere.

    merged = (sin((1 - t) omega) phi_1 + sin(t omega) phi_2) / sin(omega), omega the angle between phi_1 and phi_2 as
    vectors; on the straight line where the cosine exceeds 0.9995 or a tensor is zero. More targets are taken in
    their order: the result so far and the next one with t = w_k / (w_1 + ... + w_k), so that equal weights give every
    target the same share when angles are small. Beyond two targets the result depends on the order.

    The reported weights are the factors of the targets; they sum to one on a line and to more on an arc.
    mergekit interpolates a zero tensor on an arc of 90 degrees instead of the line.

    Source: Shoemake, Animating Rotation with Quaternion Curves, 1985, equation on page 247; FuseChat, arXiv
    2402.16107, compares with it.
    """

    needs_pivot_products = True

    def __init__(self, weights_T: np.ndarray):
        self.weights_T = weights_T

    def weigh(self, statistics: DeltaStatistics) -> Weights:
        """Compute the factors from inner products alone: every step stays a weighted sum of the targets."""
        products_TT = _target_products(statistics.gram)
        factors_T = np.zeros(len(self.weights_T))
        taken = 0.0
        for k, weight in enumerate(self.weights_T):
            taken += weight
            if weight == 0:
                continue
            t = weight / taken
            next_T = np.zeros_like(factors_T)
            next_T[k] = 1.0
            first, second = _arc_factors(factors_T, next_T, products_TT, t)
            factors_T = first * factors_T + second * next_T
        return Weights(factors_T, pivot=0.0)


def _target_products(gram_MM: np.ndarray) -> np.ndarray:
    # phi_i . phi_j from theta . theta, theta . delta_j and delta_i . delta_j.
    with_pivot_T = gram_MM[0, 1:]
    return gram_MM[0, 0] + with_pivot_T[:, None] + with_pivot_T[None, :] + gram_MM[1:, 1:]


def _arc_factors(left_T: np.ndarray, right_T: np.ndarray, products_TT: np.ndarray, t: float) -> tuple[float, float]:
    lengths = (left_T @ products_TT @ left_T) * (right_T @ products_TT @ right_T)
    if lengths <= 0:
        return 1.0 - t, t
    cosine = (left_T @ products_TT @ right_T) / np.sqrt(lengths)
    if abs(cosine) > MAX_COSINE:
        return 1.0 - t, t
    angle = np.arccos(cosine)
    return float(np.sin((1.0 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))
