"""What the deltas of one tensor, or of a group of tensors, add up to.

Shape legend: M models (the pivot, then the targets), T targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DeltaStatistics:
    """Sums over the entries of a tensor; sums of two tensors add up to those of both.

    Parameters
    ----------
    count : int
        Entries summed over.
    gram : ndarray, float64 [M, M]
        Inner products. Row and column 0 belong to the pivot's own values (zeros unless asked for), the others to the
        targets' deltas from the pivot.
    absolute : ndarray, float64 [T]
        Sums of absolute deltas.
    changed : ndarray, int64 [T]
        Entries in which the target differs from the pivot.
    """

    count: int
    gram: np.ndarray
    absolute: np.ndarray
    changed: np.ndarray

    @classmethod
    def zeros(cls, targets: int, count: int = 0) -> DeltaStatistics:
        """Begin a sum."""
        models = targets + 1
        return cls(count, np.zeros((models, models)), np.zeros(targets), np.zeros(targets, dtype=np.int64))

    def __add__(self, other: DeltaStatistics) -> DeltaStatistics:
        return DeltaStatistics(
            self.count + other.count,
            self.gram + other.gram,
            self.absolute + other.absolute,
            self.changed + other.changed,
        )

    @property
    def squares(self) -> np.ndarray:
        """Sums of squared deltas, float64 [T]."""
        return np.diagonal(self.gram)[1:].copy()

    @property
    def norms(self) -> np.ndarray:
        """Euclidean norms of the deltas, float64 [T]."""
        return np.sqrt(self.squares)

    @property
    def cosines(self) -> np.ndarray:
        """Cosines between the targets' deltas, float64 [T, T]; 0 where a target did not change."""
        norms_T = self.norms
        scale_TT = np.outer(norms_T, norms_T)
        products_TT = self.gram[1:, 1:]
        cosines_TT = np.divide(products_TT, scale_TT, out=np.zeros_like(products_TT), where=scale_TT > 0)
        return np.clip(cosines_TT, -1.0, 1.0)

    @property
    def changed_share(self) -> np.ndarray:
        """Shares of the entries that changed, float64 [T]."""
        return self.changed / max(self.count, 1)

    @property
    def is_finite(self) -> bool:
        """Whether every sum is a number."""
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.absolute).all())
