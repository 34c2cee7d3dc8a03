"""One tensor of the pivot and of every target, as stored, and the arithmetic that every method shares.

Shape legend: M models (the pivot, then the targets), T targets, N entries of a tensor or of a part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
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
# Entries of a block that are merged before they are written, so that they are still in the cache then.
PIECE = 1 << 18
# Entries of a block that torch works on at a time on the processor, so that its temporaries stay in the cache.
CPU_CHUNK = 1 << 15

# What the compiled loops take each type for.
KERNEL_TYPES = {"BF16": np.uint16, "F16": np.int16, "F32": np.float32}

_scratch = threading.local()


@dataclass(frozen=True)
class TensorValues:
    """Stored values of one tensor.

    Parameters
    ----------
    entry : TensorEntry
        The pivot's.
    stored : sequence of ndarray [N]
        The models' values as stored; bfloat16 as uint16 bits. Never written to.
    device : torch.device
        Where the arithmetic runs.
    pool : Executor
        Threads that take the blocks.
    """

    entry: TensorEntry
    stored: Sequence[np.ndarray]
    device: torch.device
    pool: Executor

    @cached_property
    def _torch(self) -> list[torch.Tensor]:
        dtype = getattr(torch, TORCH_NAMES[self.entry.dtype])
        return [torch.from_numpy(np.asarray(_Unguarded(row_N))).view(dtype) for row_N in self.stored]

    @cached_property
    def _addresses(self) -> np.ndarray:
        return np.array([row_N.ctypes.data for row_N in self.stored], dtype=np.uint64)

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
        return self.device.type == "cpu" and self.entry.dtype != "F64"

    def map_blocks(self, function: Callable[[int, int], Result]) -> list[Result]:
        """Call ``function(start, stop)`` for every block on the threads; results come in the blocks' order."""
        futures = [self.pool.submit(function, start, stop) for start, stop in self.blocks]
        return [future.result() for future in futures]

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut a block into what is merged before it is written."""
        return self._cut(start, stop, PIECE)

    def chunks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut a block or a piece of it into what torch works on at a time."""
        return self._cut(start, stop, CPU_CHUNK)

    def pivot_and_deltas(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pivot [N] and the targets' deltas from it [T, N] in the work type on the device."""
        values_MN = self._work_values([row_N[start:stop] for row_N in self._torch])
        return values_MN[0], values_MN[1:].sub_(values_MN[0])

    def deltas_at(self, places_N: np.ndarray) -> torch.Tensor:
        """Return the targets' deltas [T, N] at some entries."""
        places = torch.from_numpy(places_N)
        values_MN = self._work_values([row_N[places] for row_N in self._torch])
        return values_MN[1:] - values_MN[0]

    def add_statistics(self, sums: DeltaStatistics, start: int, stop: int, with_pivot: bool) -> None:
        """Add the deltas of some entries to ``sums``; ``with_pivot`` also fills the products with the pivot."""
        if self.is_compiled:
            self._pass_over(start, stop, sums, with_pivot, None, np.empty(0, dtype=np.float32))
            return
        for first, last in self.chunks(start, stop):
            pivot_N, deltas_TN = self.pivot_and_deltas(first, last)
            rows_MN = torch.cat([pivot_N[None] if with_pivot else torch.zeros_like(pivot_N)[None], deltas_TN])
            sums.gram[:] += (rows_MN @ rows_MN.T).double().cpu().numpy()
            sums.absolute[:] += deltas_TN.abs().sum(dim=1).double().cpu().numpy()
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
                    sum_N.add_(row_N[first:last].to(self.device).to(self.work_dtype), alpha=coefficient)
            out_N[first - start : last - start].copy_(sum_N)

    def is_finite(self, model: int) -> bool:
        """Tell whether a model's tensor holds neither NaN nor infinity; 0 is the pivot."""
        return all(bool(torch.isfinite(self._torch[model][start:stop]).all()) for start, stop in self.blocks)

    def _cut(self, start: int, stop: int, size: int) -> list[tuple[int, int]]:
        # Another device has other caches; it takes whole blocks.
        size = size if self.device.type == "cpu" else BLOCK
        return [(first, min(first + size, stop)) for first in range(start, stop, size)]

    def _work_values(self, rows_MN: list[torch.Tensor]) -> torch.Tensor:
        values_MN = torch.empty((len(rows_MN), len(rows_MN[0])), dtype=self.work_dtype, device=self.device)
        for values_N, row_N in zip(values_MN, rows_MN, strict=True):
            # The bytes as stored cross to the device: half of what converted ones would be.
            values_N.copy_(row_N.to(self.device))
        return values_MN

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
        like = self.stored[0][:0].view(KERNEL_TYPES[self.entry.dtype])
        kernels.pass_over(
            self._addresses, like, start, stop, self._kernel_scratch(), sums is not None, with_pivot,
            taken.gram, taken.absolute, taken.changed, coefficients, merged_N,
        )  # fmt: skip

    def _kernel_scratch(self) -> np.ndarray:
        scratch = getattr(_scratch, "array", None)
        if scratch is None or len(scratch) < self.targets + 1:
            scratch = _scratch.array = np.empty((self.targets + 1, kernels.CHUNK), dtype=np.float32)
        return scratch


class _Unguarded:
    """A read-only array that calls itself writable: torch warns of all others, although nothing writes to it here."""

    def __init__(self, array: np.ndarray):
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _kernel_values(values_N: torch.Tensor) -> np.ndarray:
    if values_N.dtype == torch.bfloat16:
        return values_N.view(torch.uint16).numpy()
    return (values_N.view(torch.int16) if values_N.dtype == torch.float16 else values_N).numpy()
