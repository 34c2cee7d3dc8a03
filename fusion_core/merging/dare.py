"""DARE: drop deltas at random, rescale the others, then add them or merge them as TIES does."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging import kernels
from fusion_core.merging.method import EntryMethod, densities
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.ties import elect_and_add
from fusion_core.merging.values import TensorValues


def build(spec: MergeSpec, targets: int) -> EntryMethod:
    """Read the method's settings: ``density``, ``dare_variant``, ``seed``, ``weights``, ``normalize`` and
    ``scaling_coefficient``."""
    return Dare(
        densities(spec, targets),
        spec.dare_variant,
        spec.seed,
        np.array(spec.weights or [1.0] * targets),
        spec.divides,
        spec.scaling_coefficient,
    )


class Dare(EntryMethod):
    """Merge sparse deltas tau_j = phi_j - theta.

    Drop: each entry of tau_j is kept with probability ``density`` = 1 - p. Rescale: tau'_j = kept tau_j / (1 - p).
    linear: merged = theta + lambda * sum_j w_j tau'_j. ties: signs are elected and the agreeing tau'_j averaged.
    ``normalize`` turns the sum into the average of linear, and the average into the sum of ties.

    What is dropped depends on the seed, the tensor's name, the target's number and the entry alone: neither on the
    device nor on the number of threads. mergekit rescales by the sum of the absolute values that happened to be kept
    instead of by 1 - p, and its dare_ties by default adds the agreeing deltas.

    Source: arXiv 2311.03099, section 3.2.
    """

    needs_tensor = False

    def __init__(
        self,
        densities: list[float],
        variant: Literal["linear", "ties"],
        seed: int,
        weights_T: np.ndarray,
        divides: bool,
        scaling_coefficient: float,
    ):
        self.densities = densities
        self.variant = variant
        self.seed = seed
        self.weights_T = weights_T
        self.divides = divides
        self.scaling_coefficient = scaling_coefficient

    def prepare(self, values: TensorValues, statistics: DeltaStatistics) -> list[int]:
        """Derive a stream of random numbers for each target."""
        return [_stream_key(self.seed, values.entry.name, target) for target in range(values.targets)]

    def merge(self, pivot_N: torch.Tensor, deltas_TN: torch.Tensor, prepared: list[int], start: int) -> torch.Tensor:
        """Drop, rescale and merge some entries."""
        for key, density, delta_N in zip(prepared, self.densities, deltas_TN, strict=True):
            if density < 1.0:
                kept_N = torch.from_numpy(kernels.random_mask(np.uint64(key), start, len(delta_N), density))
                delta_N.mul_(kept_N.to(delta_N)).div_(density)
        weights_T = torch.as_tensor(self.weights_T, dtype=pivot_N.dtype, device=pivot_N.device)
        if self.variant == "ties":
            merged_N = elect_and_add(deltas_TN, weights_T, self.divides)
        else:
            merged_N = weights_T @ deltas_TN
            if self.divides:
                merged_N.div_(weights_T.sum())
        return torch.add(pivot_N, merged_N, alpha=self.scaling_coefficient)

    def weights(self, prepared: list[int]) -> np.ndarray:
        """Return the factors of the rescaled deltas."""
        return self.weights_T * self.scaling_coefficient


def _stream_key(seed: int, name: str, target: int) -> int:
    digest = hashlib.blake2b(f"{seed} {target} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
