"""The streaming engine: reads, sums deltas, merges and writes, tensor by tensor and block by block, for every method.

Shape legend: M models (the pivot, then the targets), N entries of a part of a tensor.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_core.errors import MergeError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.checkpoint import FLOAT_STORAGE, TORCH_NAMES, Checkpoint, TensorEntry
from fusion_core.merging.finite import input_error, is_finite, output_error
from fusion_core.merging.granularity import group_of
from fusion_core.merging.memory import TensorMemory
from fusion_core.merging.method import EntryMethod, WeightedMethod, Weights
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.values import TensorValues, blocks_of, pieces_of
from fusion_core.merging.work import BEGUN_BYTES, Job, run_jobs, thread_count, threads
from fusion_core.merging.writer import CheckpointWriter
from fusion_core.progress import Advance

# How far the disk is kept busy ahead of the arithmetic. These bytes lie in the page cache, not in this process.
FETCHED_BYTES = 256 << 20

_thread_memory = threading.local()


class StreamedMerge:
    """One merge of tensors and what is known of it so far."""

    def __init__(
        self,
        checkpoints: list[Checkpoint],
        method: WeightedMethod | EntryMethod,
        spec: MergeSpec,
        device: torch.device,
        progress: Advance,
    ):
        self.checkpoints = checkpoints
        self.method = method
        self.spec = spec
        self.device = device
        self.progress = progress
        self.statistics: dict[str, DeltaStatistics] = {}
        self.weights: dict[str, list[float]] = {}
        self._group_weights: dict[str, Weights] = {}
        self._with_pivot = isinstance(method, WeightedMethod) and method.needs_pivot_products
        self._is_grouped = isinstance(method, WeightedMethod) and method.granularity != "matrix"
        self._steps_done = 0
        self._steps = len(checkpoints[0].tensors) * (2 if self._is_grouped else 1)

    def run(self, folder: Path, output: Path) -> None:
        """Write the merged weights into a folder, which becomes the output, and fill ``weights`` and ``statistics``."""
        if self._is_grouped:
            with threads(thread_count()) as self._pool:
                self._pass(self._sum)
            self._weigh_groups()
        entries = list(self.checkpoints[0].tensors.values())
        self._output = output
        self._memory = TensorMemory(self._capacity_bytes())
        self._writer = CheckpointWriter(folder, entries, self.spec.dtype, self.spec.max_shard_bytes)
        # The threads are gone before files and memory are closed.
        with closing(self._memory), closing(self._writer), threads(thread_count()) as self._pool:
            self._pass(self._merge)

    def _pass(self, job: Callable[[TensorEntry], Job]) -> None:
        """Run a job for every tensor, in the order of the pivot's files."""
        sizes = (entry.size_bytes * len(self.checkpoints) for entry in self.checkpoints[0].tensors.values())
        jobs = (job(entry) for entry in self._fetched_ahead())
        run_jobs(zip(sizes, jobs, strict=True), self._capacity_bytes(), self._advance)

    # What is done with one tensor. Each yields the futures that it must wait for.

    def _sum(self, entry: TensorEntry) -> Job:
        """Sum the deltas, for the weights of a group."""
        if entry.is_float:
            blocks = self._on_blocks(entry, self._sum_block)
            yield blocks
            self._keep_sums(entry, [block.result() for block in blocks])

    def _merge(self, entry: TensorEntry) -> Job:
        if not entry.is_float:
            yield [self._pool.submit(self._copy, entry)]
        elif isinstance(self.method, EntryMethod) and not self.method.needs_tensor:
            yield from self._merge_entrywise(entry, self.method, None)
        elif isinstance(self.method, EntryMethod):
            with self._memory.room(entry.size_bytes * len(self.checkpoints)) as memory:
                kept = yield from self._keep(entry, memory)
                yield from self._merge_entrywise(entry, self.method, kept)
        elif self.method.needs_statistics and not self._is_grouped:
            with self._memory.room(entry.size_bytes * len(self.checkpoints)) as memory:
                kept = yield from self._keep(entry, memory)
                yield from self._merge_weighted(entry, self.method, kept)
        else:
            yield from self._merge_weighted(entry, self.method, None)

    def _merge_weighted(self, entry: TensorEntry, method: WeightedMethod, kept: TensorValues | None) -> Job:
        """Merge by weights, from memory or, where the weights are known before, in one pass over the files."""
        name = entry.name
        is_summed = name in self.statistics
        weights = self._group_weights.get(name) or method.weigh(self.statistics.get(name) or self._no_sums())
        blocks = self._on_blocks(entry, partial(self._merge_block, weights.coefficients, kept, not is_summed))
        yield blocks
        results = [block.result() for block in blocks]
        if not is_summed:
            self._keep_sums(entry, [sums for sums, _ in results])
        self._check_merged(entry, [finite for _, finite in results])
        self.weights[name] = weights.targets.tolist()

    def _merge_entrywise(self, entry: TensorEntry, method: EntryMethod, kept: TensorValues | None) -> Job:
        """Let the method prepare itself, and merge: from memory or, where it needs nothing before, in one pass."""
        if kept is None:
            prepared = method.prepare(self._no_values(entry), self._no_sums())
        else:
            prepared = method.prepare(kept, self.statistics[entry.name])
        blocks = self._on_blocks(entry, partial(self._merge_entries, method, prepared, kept))
        yield blocks
        results = [block.result() for block in blocks]
        if kept is None:
            self._keep_sums(entry, [sums for sums, _ in results])
        self._check_merged(entry, [finite for _, finite in results])
        self.weights[entry.name] = method.weights(prepared).tolist()

    def _keep(self, entry: TensorEntry, memory: np.ndarray) -> Generator[list[Future], None, TensorValues]:
        """Read a tensor into memory and sum its deltas."""
        stored_MN = memory.view(FLOAT_STORAGE[entry.dtype]).reshape(len(self.checkpoints), entry.count)
        values = TensorValues(entry, stored_MN, self.device, self._pool)
        blocks = self._on_blocks(entry, partial(self._keep_block, values))
        yield blocks
        self._keep_sums(entry, [block.result() for block in blocks])
        return values

    # What is done with one block, on one of the threads. None of these waits for anything but the disk.

    def _on_blocks(self, entry: TensorEntry, function: Callable[[TensorEntry, int, int], Any]) -> list[Future]:
        return [self._pool.submit(function, entry, start, stop) for start, stop in blocks_of(entry.count)]

    def _sum_block(self, entry: TensorEntry, start: int, stop: int) -> DeltaStatistics:
        sums = self._no_sums(stop - start)
        for first, last in pieces_of(start, stop):
            self._piece(entry, first, last).add_statistics(sums, 0, last - first, self._with_pivot)
        return sums

    def _keep_block(self, kept: TensorValues, entry: TensorEntry, start: int, stop: int) -> DeltaStatistics:
        sums = self._no_sums(stop - start)
        for first, last in pieces_of(start, stop):
            self._fill(kept.stored[:, first:last], entry, first)
            kept.add_statistics(sums, first, last, self._with_pivot)
        return sums

    def _merge_block(
        self,
        coefficients_M: np.ndarray,
        kept: TensorValues | None,
        with_sums: bool,
        entry: TensorEntry,
        start: int,
        stop: int,
    ) -> tuple[DeltaStatistics, bool]:
        sums = self._no_sums(stop - start)
        finite = True
        for first, last in pieces_of(start, stop):
            out_N = self._output_piece(entry, last - first)
            if kept is None:
                piece = self._piece(entry, first, last)
                piece.weighted_sum(coefficients_M, 0, last - first, out_N, sums if with_sums else None)
            else:
                kept.weighted_sum(coefficients_M, first, last, out_N, None)
            finite &= self._write(entry, first, out_N)
        return sums, finite

    def _merge_entries(
        self, method: EntryMethod, prepared: Any, kept: TensorValues | None, entry: TensorEntry, start: int, stop: int
    ) -> tuple[DeltaStatistics, bool]:
        sums = self._no_sums(stop - start)
        finite = True
        for first, last in pieces_of(start, stop):
            out_N = self._output_piece(entry, last - first)
            if kept is None:
                values, origin = self._piece(entry, first, last), first
                values.add_statistics(sums, 0, last - first, self._with_pivot)
            else:
                values, origin = kept, 0
            for begin, end in values.chunks(first - origin, last - origin):
                pivot_N, deltas_TN = values.pivot_and_deltas(begin, end)
                begin, end = begin + origin, end + origin
                out_N[begin - first : end - first].copy_(method.merge(pivot_N, deltas_TN, prepared, begin))
            finite &= self._write(entry, first, out_N)
        return sums, finite

    def _copy(self, entry: TensorEntry) -> None:
        contents = [bytearray(entry.size_bytes) for _ in self.checkpoints]
        for checkpoint, content in zip(self.checkpoints, contents, strict=True):
            checkpoint.read_into(entry.name, memoryview(content), 0)
            if content != contents[0]:
                raise MergeError(
                    f"{entry.name} is of type {entry.dtype}, which cannot be merged, and {checkpoint.folder} has other "
                    "values in it than the pivot; only equal ones are copied."
                )
        self._writer.write(entry.name, 0, memoryview(contents[0]))

    def _fill(self, stored_MN: np.ndarray, entry: TensorEntry, first: int) -> None:
        """Read the entries from ``first`` on of every model."""
        for checkpoint, stored_N in zip(self.checkpoints, stored_MN, strict=True):
            checkpoint.read_into(entry.name, stored_N.view(np.uint8).data, first * stored_N.itemsize)

    def _piece(self, entry: TensorEntry, first: int, last: int) -> TensorValues:
        """Read a piece into memory that this thread uses again and again, so that it stays in its cache."""
        dtype = np.dtype(FLOAT_STORAGE[entry.dtype])
        models = len(self.checkpoints)
        stored_MN = _reused("read", models * (last - first) * dtype.itemsize).view(dtype).reshape(models, -1)
        self._fill(stored_MN, entry, first)
        return TensorValues(entry, stored_MN, self.device, self._pool)

    def _output_piece(self, entry: TensorEntry, count: int) -> torch.Tensor:
        dtype = getattr(torch, TORCH_NAMES[self._writer.places[entry.name].dtype])
        return torch.from_numpy(_reused("written", count * dtype.itemsize)).view(dtype)

    def _write(self, entry: TensorEntry, start: int, out_N: torch.Tensor) -> bool:
        self._writer.write(entry.name, start * out_N.itemsize, out_N.view(torch.uint8).numpy().data)
        return is_finite(out_N)

    # What comes between.

    def _no_values(self, entry: TensorEntry) -> TensorValues:
        nothing_MN = np.empty((len(self.checkpoints), 0), FLOAT_STORAGE[entry.dtype])
        return TensorValues(entry, nothing_MN, self.device, self._pool)

    def _no_sums(self, count: int = 0) -> DeltaStatistics:
        return DeltaStatistics.zeros(len(self.checkpoints) - 1, count)

    def _keep_sums(self, entry: TensorEntry, blocks: list[DeltaStatistics]) -> None:
        sums = sum(blocks, self._no_sums())
        if not sums.is_finite:
            raise input_error(entry, self.checkpoints)
        self.statistics[entry.name] = sums

    def _check_merged(self, entry: TensorEntry, finite: list[bool]) -> None:
        if not all(finite):
            place = self._writer.places[entry.name]
            raise output_error(entry.name, place.dtype, self._output / self._writer.files[place.shard])

    def _weigh_groups(self) -> None:
        assert isinstance(self.method, WeightedMethod)
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.statistics:
            groups[group_of(name, self.method.granularity)].append(name)
        for names in groups.values():
            total = sum((self.statistics[name] for name in names), self._no_sums())
            weights = self.method.weigh(total)
            self._group_weights.update(dict.fromkeys(names, weights))

    def _fetched_ahead(self) -> Iterator[TensorEntry]:
        """Yield the pivot's tensors; what comes next is fetched from the disk meanwhile."""
        entries = list(self.checkpoints[0].tensors.values())
        begun = fetched = fetched_bytes = 0
        for entry in entries:
            begun += entry.size_bytes * len(self.checkpoints)
            while fetched < len(entries) and fetched_bytes < begun + FETCHED_BYTES:
                for checkpoint in self.checkpoints:
                    checkpoint.fetch(entries[fetched].name)
                fetched_bytes += entries[fetched].size_bytes * len(self.checkpoints)
                fetched += 1
            yield entry

    def _advance(self) -> None:
        self._steps_done += 1
        self.progress(self._steps_done, self._steps)

    def _capacity_bytes(self) -> int:
        largest = max((entry.size_bytes for entry in self.checkpoints[0].tensors.values()), default=0)
        # The largest tensor is worked on alone; of the (targets + 2) that a merge may hold, the last is for all else.
        return max(largest * len(self.checkpoints), BEGUN_BYTES)


def _reused(name: str, size: int) -> np.ndarray:
    """Return bytes that this thread uses for one purpose; what they held before is overwritten."""
    memory = getattr(_thread_memory, name, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, dtype=np.uint8)
        setattr(_thread_memory, name, memory)
    return memory[:size]
