"""What a merge method is: one file in this package, named as in MergeSpec, with one function ``build``.

Shape legend: M models (the pivot, then the targets), T targets, N entries of a part of a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch

from fusion_core.errors import MergeError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.values import TensorValues


class WeightedMethod(ABC):
    """A method whose result is a weighted sum of whole tensors; the engine sums, the method only weighs."""

    # Whether `weigh` reads the statistics. Where not, it is called with zeros, and one pass merges and sums.
    needs_statistics = True
    # Whether the statistics must hold the products with the pivot's own values.
    needs_pivot_products = False
    # Which tensors share one call of `weigh`: a granularity of MergeSpec.
    granularity = "matrix"

    @abstractmethod
    def weigh(self, statistics: DeltaStatistics) -> Weights:
        """Return the weights of the tensors that the statistics were summed over."""


class EntryMethod(ABC):
    """A method that treats every entry of a tensor in its own way."""

    # Whether `prepare` reads values or statistics. Where not, it is called without entries and with zeros, and one
    # pass merges and sums.
    needs_tensor = True

    def prepare(self, values: TensorValues, statistics: DeltaStatistics) -> Any:
        """Find out what `merge` must know of the whole tensor; it is handed to `merge` and `weights`."""
        return None

    @abstractmethod
    def merge(self, pivot_N: torch.Tensor, deltas_TN: torch.Tensor, prepared: Any, start: int) -> torch.Tensor:
        """Merge some entries.

        Parameters
        ----------
        pivot_N : Tensor [N]
            Float32 (float64 where the storage is).
        deltas_TN : Tensor [T, N]
            Targets minus pivot; may be overwritten.
        prepared : Any
            What `prepare` returned.
        start : int
            Place of the first entry within the tensor.

        Returns
        -------
        Tensor [N]
            The merged entries, in the type of ``pivot_N``.
        """

    @abstractmethod
    def weights(self, prepared: Any) -> np.ndarray:
        """Return the weights [T] that the report shows for the tensor; called after all its entries were merged."""


@dataclass(frozen=True)
class Weights:
    """Merge weights of one tensor or group.

    Parameters
    ----------
    targets : ndarray, float64 [T]
        Weights of the targets; what the report shows.
    pivot : float
        Weight of the pivot: 0 where the targets' weights sum to one, one minus their sum where deltas are added.
    """

    targets: np.ndarray
    pivot: float

    @property
    def coefficients(self) -> np.ndarray:
        """Pivot's and targets' weights, float64 [M]."""
        return np.concatenate([[self.pivot], self.targets])


def ones_for_zeros(values_N: torch.Tensor) -> torch.Tensor:
    """Replace zeros by ones, in place, so that zeros over them stay zeros."""
    return values_N.add_(values_N.clone().eq_(0))


def densities(spec: MergeSpec, targets: int) -> list[float]:
    """Return the spec's density of each target."""
    return list(spec.density) if isinstance(spec.density, tuple) else [spec.density] * targets


def build_method(spec: MergeSpec, targets: int) -> WeightedMethod | EntryMethod:
    """Build the method that a spec names, for a number of targets.

    Raises
    ------
    MergeError
        If the spec's weights are not one per target, or the method cannot take so many targets.
    """
    for name in ("weights", "density"):
        numbers = getattr(spec, name)
        if isinstance(numbers, tuple) and len(numbers) != targets:
            raise MergeError(
                f"`{name}` has {len(numbers)} numbers for {targets} targets; give one for each, in their order."
            )
    return import_module(f"fusion_core.merging.{spec.method}").build(spec, targets)
