"""The merge of whole checkpoint folders: checks, the streamed merge of their tensors, what else the output holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from fusion_core.errors import MergeError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.checkpoint import Checkpoint
from fusion_core.merging.method import build_method
from fusion_core.merging.output import real_output, whole_folder
from fusion_core.merging.report import JSON_NAME, MergeReport
from fusion_core.merging.streaming import StreamedMerge
from fusion_core.merging.structure import check_structure
from fusion_core.models.folders import copy_non_weight_files, set_config_dtype
from fusion_core.progress import Advance, ignore_progress


def merge_checkpoints(
    pivot: Path,
    targets: Sequence[Path],
    output: Path,
    spec: MergeSpec,
    *,
    names: Sequence[str] | None = None,
    progress: Advance = ignore_progress,
    complete: Callable[[Path, MergeReport], None] = lambda folder, report: None,
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
    names : sequence of str, optional
        What the report calls the pivot and then each target; default: by their folders' names.
    progress : callable
        Called with tensors done and tensors to do; methods that need two passes count each tensor twice.
    complete : callable
        Called at the end with the folder that becomes the output, to put more files into it, and the report.

    Returns
    -------
    MergeReport
        The same for the same inputs and names, as are the bytes written.

    Raises
    ------
    MergeError
        If the structures differ, an input holds NaN or infinity, or a tensor that cannot be merged differs.
    """
    if not targets:
        raise MergeError("A merge needs at least one target; name the targets' checkpoint folders.")
    if names is not None and len(names) != len(targets) + 1:
        raise MergeError(f"{len(names)} names were given for a pivot and {len(targets)} targets; give one for each.")
    method = build_method(spec, len(targets))
    device = _usable_device(spec.device)
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(closing(Checkpoint.open(Path(folder)))) for folder in (pivot, *targets)]
        check_structure(checkpoints[0], checkpoints[1:])
        files = {entry.path for checkpoint in checkpoints for entry in checkpoint.tensors.values()}
        output = real_output(Path(output), [Path(pivot), *map(Path, targets), *sorted(files)])
        folder = stack.enter_context(whole_folder(output))
        copy_non_weight_files(Path(pivot), folder)
        if spec.dtype is not None:
            set_config_dtype(folder, spec.dtype)
        merge = StreamedMerge(checkpoints, method, spec, device, progress)
        merge.run(folder, output)
        called = list(names) if names is not None else [Path(one).resolve().name for one in (pivot, *targets)]
        report = MergeReport(spec, called[0], called[1:], merge.weights, merge.statistics)
        (folder / JSON_NAME).write_text(report.to_json(), encoding="utf-8")
        complete(folder, report)
    return report


def _usable_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MergeError("`device: cuda` needs an NVIDIA GPU that torch can use, and none is here; set `device: cpu`.")
    return device
