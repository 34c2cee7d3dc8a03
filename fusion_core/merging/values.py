"""One tensor of the pivot and of every target, as stored, and the arithmetic that every method shares.

Shape legend: M models (the pivot, then the targets), T targets, N entries of a tensor or of a part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
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
# Entries of a block that are read, worked on and written before the next, so that they stay in the cache meanwhile.
PIECE = 1 << 18
# Entries of a block that torch works on at a time on the processor, so that its temporaries stay in the cache.
CPU_CHUNK = 1 << 15

# What the compiled loops take each type for.
KERNEL_TYPES = {"BF16": np.uint16, "F16": np.int16, "F32": np.float32}

_scratch = threading.local()


@dataclass(frozen=True)
class TensorValues:
    """Stored values of one tensor of every model, or of a piece of it.

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

    @cached_property
    def _torch(self) -> torch.Tensor:
        return torch.from_numpy(self.stored).view(getattr(torch, TORCH_NAMES[self.entry.dtype]))

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.stored) - 1

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and last entry of each block."""
        return blocks_of(self.entry.count)

    @property
    def work_dtype(self) -> torch.dtype:
        """Type of the arithmetic: float32, and float64 only where the storage is."""
        return torch.float64 if self.entry.dtype == "F64" else torch.float32

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled loops take this tensor; torch takes the others."""
        return self.device.type == "cpu" and self.entry.dtype != "F64"

    def map_blocks(self, function: Callable[[int, int], Result]) -> list[Result]:
        """Call ``function(start, stop)`` for every block on the threads; results come in the blocks' order."""
        futures = [self.pool.submit(function, start, stop) for start, stop in self.blocks]
        return [future.result() for future in futures]

    def chunks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut a piece into what torch works on at a time."""
        # Another device has other caches; it takes whole pieces.
        return _cut(start, stop, CPU_CHUNK if self.device.type == "cpu" else PIECE)

    def pivot_and_deltas(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pivot [N] and the targets' deltas from it [T, N] in the work type on the device."""
        values_MN = self._torch[:, start:stop].to(self.device, self.work_dtype, copy=True)
        return values_MN[0], values_MN[1:].sub_(values_MN[0])

    def deltas_at(self, places_N: np.ndarray) -> torch.Tensor:
        """Return the targets' deltas [T, N] at some entries."""
        values_MN = self._torch[:, torch.from_numpy(places_N)].to(self.device, self.work_dtype)
        return values_MN[1:] - values_MN[0]

    def add_statistics(self, sums: DeltaStatistics, start: int, stop: int, with_pivot: bool) -> None:
        """Add the deltas of some entries to ``sums``; ``with_pivot`` also fills the products with the pivot."""
        if self.is_compiled:
            self._pass_over(start, stop, sums, with_pivot, None, np.empty(0, dtype=np.float32))
            return
        for first, last in self.chunks(start, stop):
            pivot_N, deltas_TN = self.pivot_and_deltas(first, last)
            # Squares of tiny and huge deltas are beyond float32.
            rows_MN = torch.cat([pivot_N[None] if with_pivot else torch.zeros_like(pivot_N)[None], deltas_TN]).double()
            sums.gram[:] += (rows_MN @ rows_MN.T).cpu().numpy()
            sums.absolute[:] += rows_MN[1:].abs().sum(dim=1).cpu().numpy()
            sums.changed[:] += (deltas_TN != 0).sum(dim=1).cpu().numpy()

    def weighted_sum(
        self, coefficients_M: np.ndarray, start: int, stop: int, out_N: torch.Tensor, sums: DeltaStatistics | None
    ) -> None:
        """Write the sum of coefficient times model into ``out_N`` [stop - start], in its own type.

        ``sums``, where given, takes the deltas' statistics from the same pass over memory.
        """
        if self.is_compiled:
            self._pass_over(start, stop, sums, False, coefficients_M, _kernel_values(out_N))
            return
        if sums is not None:
            self.add_statistics(sums, start, stop, with_pivot=False)
        for first, last in self.chunks(start, stop):
            sum_N = torch.zeros(last - first, dtype=self.work_dtype, device=self.device)
            for row_N, coefficient in zip(self._torch, coefficients_M.tolist(), strict=True):
                if coefficient != 0:
                    sum_N.add_(row_N[first:last].to(self.device, self.work_dtype), alpha=coefficient)
            out_N[first - start : last - start].copy_(sum_N)

    def _pass_over(
        self,
        start: int,
        stop: int,
        sums: DeltaStatistics | None,
        with_pivot: bool,
        coefficients_M: np.ndarray | None,
        merged_N: np.ndarray,
    ) -> None:
        taken = sums or DeltaStatistics.zeros(self.targets)
        # A factor beyond float32 makes the result infinite, which is refused by name.
        with np.errstate(over="ignore"):
            coefficients = (np.zeros(len(self.stored)) if coefficients_M is None else coefficients_M).astype(np.float32)
        kernels.pass_over(
            self.stored.view(KERNEL_TYPES[self.entry.dtype]), start, stop, self._kernel_scratch(), sums is not None,
            with_pivot, taken.gram, taken.absolute, taken.changed, coefficients, merged_N,
        )  # fmt: skip

    def _kernel_scratch(self) -> np.ndarray:
        scratch = getattr(_scratch, "array", None)
        if scratch is None or len(scratch) < self.targets + 1:
            scratch = _scratch.array = np.empty((self.targets + 1, kernels.CHUNK), dtype=np.float32)
        return scratch


def blocks_of(count: int) -> list[tuple[int, int]]:
    """Cut a tensor into what one thread takes at a time: first and last entry of each block."""
    return _cut(0, count, BLOCK)


def pieces_of(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut a block into what is read, worked on and written at a time."""
    return _cut(start, stop, PIECE)


def _cut(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def _kernel_values(values_N: torch.Tensor) -> np.ndarray:
    if values_N.dtype == torch.bfloat16:
        return values_N.view(torch.uint16).numpy()
    return (values_N.view(torch.int16) if values_N.dtype == torch.float16 else values_N).numpy()
