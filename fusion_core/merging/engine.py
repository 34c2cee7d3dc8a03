"""The streaming engine: reads, sums deltas, merges and writes, tensor by tensor and block by block, for every method.

Shape legend: M models (the pivot, then the targets), N entries of a part of a tensor.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_core.errors import MergeError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.checkpoint import TORCH_NAMES, Checkpoint, TensorEntry
from fusion_core.merging.finite import input_error, is_finite, output_error
from fusion_core.merging.granularity import group_of
from fusion_core.merging.method import EntryMethod, WeightedMethod, Weights, build_method
from fusion_core.merging.output import whole_folder
from fusion_core.merging.report import JSON_NAME, MergeReport
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.structure import check_structure
from fusion_core.merging.values import TensorValues
from fusion_core.merging.work import Job, run_jobs, thread_count, threads
from fusion_core.merging.writer import CheckpointWriter
from fusion_core.model_folders import copy_non_weight_files, set_config_dtype
from fusion_core.progress import Advance, ignore_progress

# So much may be begun beside the largest tensor, in however small a model.
MIN_BESIDE_BYTES = 16 << 20
# How far the disk is kept busy ahead of the arithmetic. These bytes lie in the page cache, not in this process.
FETCHED_BYTES = 256 << 20

_thread_memory = threading.local()


def merge_checkpoints(
    pivot: Path,
    targets: Sequence[Path],
    output: Path,
    spec: MergeSpec,
    *,
    progress: Advance = ignore_progress,
) -> MergeReport:
    """Merge targets that were trained from one pivot into one checkpoint folder.

    Parameters
    ----------
    pivot, targets : Path
        Checkpoint folders with safetensors of equal structure.
    output : Path
        Folder to create: weights, the pivot's config, tokenizer and template, and ``merge_report.json``. It appears
        when it is whole. An earlier merge at this place is replaced, anything else is not.
    spec : MergeSpec
    progress : callable
        Called with tensors done and tensors to do; methods that need two passes count each tensor twice.

    Returns
    -------
    MergeReport
        The same for the same inputs, as are the bytes written.

    Raises
    ------
    MergeError
        If the structures differ, an input holds NaN or infinity, or a tensor that cannot be merged differs.
    """
    if not targets:
        raise MergeError("A merge needs at least one target; name the targets' checkpoint folders.")
    method = build_method(spec, len(targets))
    device = _usable_device(spec.device)
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(closing(Checkpoint.open(Path(folder)))) for folder in (pivot, *targets)]
        check_structure(checkpoints[0], checkpoints[1:])
        output = Path(output)
        for folder in (pivot, *targets):
            if Path(folder).resolve() == output.resolve():
                raise MergeError(f"The output {output} is one of the inputs; choose another output folder.")
        folder = stack.enter_context(whole_folder(output))
        copy_non_weight_files(Path(pivot), folder)
        if spec.dtype is not None:
            set_config_dtype(folder, spec.dtype)
        merge = _Merge(checkpoints, method, spec, device, progress)
        merge.run(folder, output)
        report = MergeReport(
            spec, Path(pivot).resolve().name, [Path(target).resolve().name for target in targets], merge.weights,
            merge.statistics,
        )  # fmt: skip
        (folder / JSON_NAME).write_text(report.to_json(), encoding="utf-8")
    return report


class _Merge:
    """The state of one merge."""

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
        self._writer = CheckpointWriter(folder, entries, self.spec.dtype, self.spec.max_shard_bytes)
        # The threads are gone before the files are closed.
        with closing(self._writer), threads(thread_count()) as self._pool:
            self._pass(self._merge_entrywise if isinstance(self.method, EntryMethod) else self._merge_weighted)

    def _pass(self, job: Callable[[TensorValues], Job]) -> None:
        """Run a job for every tensor, in the order of the pivot's files."""
        sizes = (entry.size_bytes * len(self.checkpoints) for entry in self.checkpoints[0].tensors.values())
        jobs = (self._on_tensor(entry, job) for entry in self._fetched_ahead())
        run_jobs(zip(sizes, jobs, strict=True), self._capacity_bytes(), self._advance)

    def _on_tensor(self, entry: TensorEntry, job: Callable[[TensorValues], Job]) -> Job:
        rows = [checkpoint.view(entry.name) for checkpoint in self.checkpoints]
        if entry.is_float:
            yield from job(TensorValues(entry, rows, self.device, self._pool))
        elif job != self._sum:
            yield [self._pool.submit(self._copy, entry, rows)]
        for checkpoint in self.checkpoints:
            checkpoint.release(entry.name)

    # What is done with one tensor. Each yields the futures that it must wait for.

    def _sum(self, values: TensorValues) -> Job:
        blocks = self._on_blocks(values, self._sum_block)
        yield blocks
        self._keep_sums(values, [block.result() for block in blocks])

    def _merge_weighted(self, values: TensorValues) -> Job:
        method, name = self.method, values.entry.name
        assert isinstance(method, WeightedMethod)
        is_summed = name in self.statistics
        if method.needs_statistics and not is_summed:
            yield from self._sum(values)
            is_summed = True
        sums = self.statistics.get(name) or DeltaStatistics.zeros(values.targets)
        weights = self._group_weights.get(name) or method.weigh(sums)
        blocks = self._on_blocks(values, partial(self._merge_block, weights.coefficients, not is_summed))
        yield blocks
        results = [block.result() for block in blocks]
        if not is_summed:
            self._keep_sums(values, [block_sums for block_sums, _ in results])
        self._check_merged(values, [finite for _, finite in results])
        self.weights[name] = weights.targets.tolist()

    def _merge_entrywise(self, values: TensorValues) -> Job:
        method, name = self.method, values.entry.name
        assert isinstance(method, EntryMethod)
        yield from self._sum(values)
        prepared = method.prepare(values, self.statistics[name])
        blocks = self._on_blocks(values, partial(self._merge_entries_of_block, method, prepared))
        yield blocks
        self._check_merged(values, [block.result() for block in blocks])
        self.weights[name] = method.weights(prepared).tolist()

    # What is done with one block, on one of the threads. None of these waits for anything but the disk.

    def _on_blocks(self, values: TensorValues, function: Callable[[TensorValues, int, int], Any]) -> list[Future]:
        return [self._pool.submit(function, values, start, stop) for start, stop in values.blocks]

    def _sum_block(self, values: TensorValues, start: int, stop: int) -> DeltaStatistics:
        self._read(values.entry, start, stop)
        sums = DeltaStatistics.zeros(values.targets, stop - start)
        with_pivot = isinstance(self.method, WeightedMethod) and self.method.needs_pivot_products
        values.add_statistics(sums, start, stop, with_pivot)
        return sums

    def _merge_block(
        self, coefficients_M: np.ndarray, with_sums: bool, values: TensorValues, start: int, stop: int
    ) -> tuple[DeltaStatistics, bool]:
        self._read(values.entry, start, stop)
        sums = DeltaStatistics.zeros(values.targets, stop - start)
        finite = True
        for first, last in values.pieces(start, stop):
            out_N = self._output_piece(values.entry, last - first)
            values.weighted_sum(coefficients_M, first, last, out_N, sums if with_sums else None)
            finite &= self._write(values.entry, first, out_N)
        return sums, finite

    def _merge_entries_of_block(
        self, method: EntryMethod, prepared: Any, values: TensorValues, start: int, stop: int
    ) -> bool:
        finite = True
        for first, last in values.pieces(start, stop):
            out_N = self._output_piece(values.entry, last - first)
            for begin, end in values.chunks(first, last):
                pivot_N, deltas_TN = values.pivot_and_deltas(begin, end)
                out_N[begin - first : end - first].copy_(method.merge(pivot_N, deltas_TN, prepared, begin))
            finite &= self._write(values.entry, first, out_N)
        return finite

    def _copy(self, entry: TensorEntry, rows: list[np.ndarray]) -> None:
        for checkpoint, row in zip(self.checkpoints, rows, strict=True):
            checkpoint.read(entry.name, 0, entry.size_bytes)
            if not np.array_equal(row, rows[0]):
                raise MergeError(
                    f"{entry.name} is of type {entry.dtype}, which cannot be merged, and {checkpoint.folder} has other "
                    "values in it than the pivot; only equal ones are copied."
                )
        self._writer.write(entry.name, 0, rows[0].data)

    def _read(self, entry: TensorEntry, start: int, stop: int) -> None:
        width = entry.size_bytes // entry.count
        for checkpoint in self.checkpoints:
            checkpoint.read(entry.name, start * width, (stop - start) * width)

    def _output_piece(self, entry: TensorEntry, count: int) -> torch.Tensor:
        """Return memory for merged values; a thread uses the same again and again, so that it stays in its cache."""
        dtype = getattr(torch, TORCH_NAMES[self._writer.places[entry.name].dtype])
        piece = getattr(_thread_memory, "piece", None)
        if piece is None or piece.numel() < count * dtype.itemsize:
            piece = _thread_memory.piece = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        return piece[: count * dtype.itemsize].view(dtype)

    def _write(self, entry: TensorEntry, start: int, out_N: torch.Tensor) -> bool:
        self._writer.write(entry.name, start * out_N.itemsize, out_N.view(torch.uint8).numpy().data)
        return is_finite(out_N)

    # What comes between.

    def _keep_sums(self, values: TensorValues, blocks: list[DeltaStatistics]) -> None:
        sums = sum(blocks, DeltaStatistics.zeros(values.targets))
        if not sums.is_finite:
            raise input_error(values, self.checkpoints)
        self.statistics[values.entry.name] = sums

    def _check_merged(self, values: TensorValues, finite: list[bool]) -> None:
        if not all(finite):
            place = self._writer.places[values.entry.name]
            raise output_error(values.entry.name, place.dtype, self._output / self._writer.files[place.shard])

    def _weigh_groups(self) -> None:
        assert isinstance(self.method, WeightedMethod)
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.statistics:
            groups[group_of(name, self.method.granularity)].append(name)
        for names in groups.values():
            total = sum((self.statistics[name] for name in names), DeltaStatistics.zeros(len(self.checkpoints) - 1))
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
        # A quarter of the last of the (targets + 2) tensors that a merge may hold; the rest is for all else.
        return largest * len(self.checkpoints) + max(largest // 4, MIN_BESIDE_BYTES)


def _usable_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MergeError("`device: cuda` needs an NVIDIA GPU that torch can use, and none is here; set `device: cpu`.")
    return device
