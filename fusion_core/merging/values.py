"""One tensor of the pivot and of every target, as stored, and the arithmetic that every method shares.

Shape legend: M models (the pivot, then the targets), T targets, N entries of a tensor or of a part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from fusion_core.merging import kernels
from fusion_core.merging.checkpoint import TORCH_NAMES, TensorEntry
from fusion_core.merging.statistics import DeltaStatistics

Result = TypeVar("Result")

# Entries that one thread takes at a time. Sums are taken block by block in order, so the size decides last bits.
BLOCK = 1 << 20
# Entries of a block that torch works on at a time on the processor, so that its temporaries stay in the cache.
CPU_CHUNK = 1 << 15

_scratch = threading.local()


@dataclass(frozen=True)
class TensorValues:
    """Stored values of one tensor.

    Parameters
    ----------
    entry : TensorEntry
        The pivot's.
    stored : ndarray [M, N]
        Rows as stored; bfloat16 as uint16 bits.
    device : torch.device
        Where the arithmetic runs.
    pool : Executor
        Threads that take the blocks.
    """

    entry: TensorEntry
    stored: np.ndarray
    device: torch.device
    pool: Executor
    _torch: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = torch.from_numpy(self.stored)
        object.__setattr__(self, "_torch", values.view(getattr(torch, TORCH_NAMES[self.entry.dtype])))

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.stored) - 1

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """First and last entry of each block."""
        return [(start, min(start + BLOCK, self.entry.count)) for start in range(0, self.entry.count, BLOCK)]

    @property
    def work_dtype(self) -> torch.dtype:
        """Type of the arithmetic: float32, and float64 only where the storage is."""
        return torch.float64 if self.entry.dtype == "F64" else torch.float32

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled loops take this tensor; torch takes the others."""
        return self.device.type == "cpu" and self.entry.dtype in ("BF16", "F32")

    def map_blocks(self, function: Callable[[int, int], Result]) -> list[Result]:
        """Call ``function(start, stop)`` for every block on the threads; results come in the blocks' order."""
        futures = [self.pool.submit(function, start, stop) for start, stop in self.blocks]
        return [future.result() for future in futures]

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a block into what fits the cache."""
        size = CPU_CHUNK if self.device.type == "cpu" else BLOCK
        for first in range(start, stop, size):
            yield first, min(first + size, stop)

    def pivot_and_deltas(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pivot [N] and the targets' deltas from it [T, N] in the work type on the device."""
        values_MN = self._torch[:, start:stop].to(self.device, self.work_dtype, copy=True)
        return values_MN[0], values_MN[1:].sub_(values_MN[0])

    def deltas_at(self, places_N: np.ndarray) -> torch.Tensor:
        """Return the targets' deltas [T, N] at some entries."""
        values_MN = self._torch[:, torch.from_numpy(places_N)].to(self.device, self.work_dtype)
        return values_MN[1:] - values_MN[0]

    def statistics(self, start: int, stop: int, with_pivot: bool) -> DeltaStatistics:
        """Sum the deltas of a block; ``with_pivot`` also fills the products with the pivot."""
        sums = DeltaStatistics.zeros(self.targets, stop - start)
        if self.is_compiled:
            kernels.add_statistics(
                self.stored, start, stop, with_pivot, self._kernel_scratch(), sums.gram, sums.absolute,
                sums.changed,
            )  # fmt: skip
            return sums
        for first, last in self.chunks(start, stop):
            pivot_N, deltas_TN = self.pivot_and_deltas(first, last)
            rows_MN = torch.cat([pivot_N[None] if with_pivot else torch.zeros_like(pivot_N)[None], deltas_TN])
            sums.gram[:] += (rows_MN @ rows_MN.T).double().cpu().numpy()
            sums.absolute[:] += deltas_TN.abs().sum(dim=1).double().cpu().numpy()
            sums.changed[:] += (deltas_TN != 0).sum(dim=1).cpu().numpy()
        return sums

    def weighted_sum(self, coefficients_M: np.ndarray, start: int, stop: int, out_N: torch.Tensor) -> None:
        """Write the sum of coefficient times model over a block into ``out_N`` [stop - start], in its own type."""
        if self.is_compiled and out_N.dtype == self._torch.dtype:
            merged_N = (out_N.view(torch.uint16) if out_N.dtype == torch.bfloat16 else out_N).numpy()
            coefficients = coefficients_M.astype(np.float32)
            kernels.weighted_sum(self.stored, start, stop, coefficients, self._kernel_scratch(), merged_N)
            return
        for first, last in self.chunks(start, stop):
            sum_N = torch.zeros(last - first, dtype=self.work_dtype, device=self.device)
            for row_N, coefficient in zip(self._torch, coefficients_M.tolist(), strict=True):
                if coefficient != 0:
                    sum_N.add_(row_N[first:last].to(self.device, self.work_dtype), alpha=coefficient)
            out_N[first - start : last - start].copy_(sum_N)

    def first_not_finite(self) -> int | None:
        """Return the first row that holds NaN or infinity, None where none does."""
        for number, row_N in enumerate(self._torch):
            for start, stop in self.blocks:
                if not torch.isfinite(row_N[start:stop]).all():
                    return number
        return None

    def _kernel_scratch(self) -> np.ndarray:
        scratch = getattr(_scratch, "array", None)
        if scratch is None or len(scratch) < self.targets + 1:
            scratch = _scratch.array = np.empty((self.targets + 1, kernels.CHUNK), dtype=np.float32)
        return scratch
