"""The streaming engine: reads ahead, sums deltas, merges and writes, tensor by tensor, for every method.

Shape legend: M models (the pivot, then the targets), N entries of a part of a tensor.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_core.errors import MergeError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.checkpoint import TORCH_NAMES, Checkpoint
from fusion_core.merging.granularity import group_of
from fusion_core.merging.method import EntryMethod, WeightedMethod, Weights, build_method
from fusion_core.merging.output import whole_folder
from fusion_core.merging.report import JSON_NAME, MergeReport
from fusion_core.merging.statistics import DeltaStatistics
from fusion_core.merging.stream import StoredTensor, TensorStream
from fusion_core.merging.structure import check_structure
from fusion_core.merging.values import BLOCK, TensorValues
from fusion_core.merging.work import TensorWork, one_torch_thread, thread_count, when_all_done
from fusion_core.merging.writer import CheckpointWriter
from fusion_core.model_folders import copy_non_weight_files, set_config_dtype
from fusion_core.progress import Advance, ignore_progress

# Below this, reading ahead would stall on every tensor of a small model.
MIN_READ_AHEAD_BYTES = 32 << 20


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
        merge.run(folder)
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

    def run(self, folder: Path) -> None:
        """Write the merged weights into a folder and fill ``weights`` and ``statistics``."""
        with one_torch_thread(), ThreadPoolExecutor(thread_count(), thread_name_prefix="merge") as self._pool:
            if self._is_grouped:
                self._pass(self._begin_statistics, self._end_statistics)
                self._weigh_groups()
            entries = list(self.checkpoints[0].tensors.values())
            writer = CheckpointWriter(folder, entries, self.spec.dtype, self.spec.max_shard_bytes)
            with closing(writer) as self._writer:
                self._pass(self._begin_statistics, self._begin_merge)

    def _pass(
        self,
        begin: Callable[[StoredTensor], TensorWork],
        end: Callable[[TensorWork], None],
    ) -> None:
        """Stream every tensor through ``begin`` as soon as it is read, then through ``end``, in order."""
        stream = TensorStream(self.checkpoints, self._capacity_bytes())
        running: deque[TensorWork] = deque()
        begun: deque[TensorWork] = deque()
        try:
            is_read = False
            while not is_read or begun:
                try:
                    # The next tensor's sums are begun before the last one's are waited for, so that no thread idles.
                    tensor = None if is_read else stream.next(wait=not begun)
                    is_read = is_read or tensor is None
                except queue.Empty:
                    tensor = None
                if tensor is not None:
                    begun.append(begin(tensor))
                    if len(begun) < 2:
                        continue
                if begun:
                    work = begun.popleft()
                    end(work)
                    when_all_done(work.merging, partial(stream.give_back, work.tensor))
                    running.append(work)
                    self._steps_done += 1
                    self.progress(self._steps_done, self._steps)
                while running and all(future.done() for future in running[0].merging):
                    running.popleft().finish()
            while running:
                running.popleft().finish()
        finally:
            for work in (*running, *begun):
                work.cancel()
            stream.stop()

    def _begin_statistics(self, tensor: StoredTensor) -> TensorWork:
        if not tensor.entry.is_float:
            return TensorWork(tensor, None, [])
        values = TensorValues(tensor.entry, tensor.rows, self.device, self._pool)
        if tensor.entry.name in self.statistics:
            return TensorWork(tensor, values, [])
        with_pivot = isinstance(self.method, WeightedMethod) and self.method.needs_pivot_products
        sums = [self._pool.submit(values.statistics, start, stop, with_pivot) for start, stop in values.blocks]
        return TensorWork(tensor, values, sums)

    def _end_statistics(self, work: TensorWork) -> None:
        if work.values is None or work.tensor.entry.name in self.statistics:
            return
        sums = sum((future.result() for future in work.sums), DeltaStatistics.zeros(work.values.targets))
        if not sums.is_finite:
            self._refuse_not_finite(work.values)
        self.statistics[work.tensor.entry.name] = sums

    def _begin_merge(self, work: TensorWork) -> None:
        self._end_statistics(work)
        if work.values is None:
            work.merging = [self._pool.submit(self._copy, work.tensor)]
            return
        values, name = work.values, work.tensor.entry.name
        method = self.method
        if isinstance(method, WeightedMethod):
            weights = self._group_weights.get(name) or method.weigh(self.statistics[name])
            self.weights[name] = weights.targets.tolist()
            work.merging = [
                self._pool.submit(self._merge_weighted, values, weights.coefficients, start, stop)
                for start, stop in values.blocks
            ]
            return
        prepared = method.prepare(values, self.statistics[name])
        work.merging = [
            self._pool.submit(self._merge_entries, method, values, prepared, start, stop)
            for start, stop in values.blocks
        ]
        work.when_merged = lambda: self.weights.update({name: method.weights(prepared).tolist()})

    def _merge_weighted(self, values: TensorValues, coefficients_M: np.ndarray, start: int, stop: int) -> None:
        out_N = self._output_block(values, start, stop)
        values.weighted_sum(coefficients_M, start, stop, out_N)
        self._write_block(values, start, out_N)

    def _merge_entries(self, method: EntryMethod, values: TensorValues, prepared: Any, start: int, stop: int) -> None:
        out_N = self._output_block(values, start, stop)
        for first, last in values.chunks(start, stop):
            pivot_N, deltas_TN = values.pivot_and_deltas(first, last)
            out_N[first - start : last - start].copy_(method.merge(pivot_N, deltas_TN, prepared, first))
        self._write_block(values, start, out_N)

    def _output_block(self, values: TensorValues, start: int, stop: int) -> torch.Tensor:
        dtype = getattr(torch, TORCH_NAMES[self._writer.places[values.entry.name].dtype])
        block = getattr(_thread_memory, "block", None)
        if block is None or block.numel() < BLOCK * dtype.itemsize:
            block = _thread_memory.block = torch.empty(BLOCK * dtype.itemsize, dtype=torch.uint8)
        return block.view(dtype)[: stop - start]

    def _write_block(self, values: TensorValues, start: int, out_N: torch.Tensor) -> None:
        self._writer.write(values.entry.name, start * out_N.itemsize, out_N.view(torch.uint8).numpy().data)

    def _copy(self, tensor: StoredTensor) -> None:
        for row, checkpoint in zip(tensor.rows[1:], self.checkpoints[1:], strict=True):
            if not np.array_equal(row, tensor.rows[0]):
                raise MergeError(
                    f"{tensor.entry.name} is of type {tensor.entry.dtype}, which cannot be merged, and "
                    f"{checkpoint.folder} has other values in it than the pivot; only equal ones are copied."
                )
        self._writer.write(tensor.entry.name, 0, tensor.rows[0].data)

    def _weigh_groups(self) -> None:
        assert isinstance(self.method, WeightedMethod)
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.statistics:
            groups[group_of(name, self.method.granularity)].append(name)
        for names in groups.values():
            total = sum((self.statistics[name] for name in names), DeltaStatistics.zeros(len(self.checkpoints) - 1))
            weights = self.method.weigh(total)
            self._group_weights.update(dict.fromkeys(names, weights))

    def _refuse_not_finite(self, values: TensorValues) -> None:
        number = values.first_not_finite()
        if number is None:
            raise MergeError(
                f"{values.entry.name}: the targets are so far from the pivot that squares of the difference overflow; "
                "they cannot have been trained from it."
            )
        path = self.checkpoints[number].tensors[values.entry.name].path
        raise MergeError(
            f"{values.entry.name} in {path} holds NaN or infinity; the model that was saved there is broken, train or "
            "fetch it again."
        )

    def _capacity_bytes(self) -> int:
        largest = max((entry.size_bytes for entry in self.checkpoints[0].tensors.values()), default=0)
        # Half of the last of the (targets + 2) tensors that a merge may hold is for reading ahead, half for all else.
        return largest * len(self.checkpoints) + max(largest // 2, MIN_READ_AHEAD_BYTES)


_thread_memory = threading.local()


def _usable_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MergeError("`device: cuda` needs an NVIDIA GPU that torch can use, and none is here; set `device: cpu`.")
    return device
