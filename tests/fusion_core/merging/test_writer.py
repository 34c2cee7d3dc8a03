"""What cannot be written is said before, or instead of, writing it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from fusion_core.errors import MergeError
from fusion_core.merging import MergeSpec, merge_checkpoints
from tests.fusion_core.merging.checkpoints import load, save_all

OVERFLOWING = [
    MergeSpec(method="task_arithmetic", scaling_coefficient=4.0),
    MergeSpec(method="ties", scaling_coefficient=4.0),
    MergeSpec(method="task_arithmetic", scaling_coefficient=4.0, max_shard_size="1KB"),
]


@pytest.mark.parametrize("spec", OVERFLOWING, ids=lambda spec: f"{spec.method}-{spec.max_shard_size}")
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_result_beyond_the_types_range_is_refused(tmp_path: Path, spec: MergeSpec, stored: torch.dtype) -> None:
    # 4 x 20,000 is finite, but not in float16.
    pivot = {"a": torch.zeros(2000, dtype=stored), "b": torch.zeros(3000, dtype=stored)}
    target = {"a": torch.ones(2000, dtype=stored), "b": torch.ones(3000, dtype=stored)}
    target["b"][2999] = -20_000.0
    folders = save_all(tmp_path, pivot, [target])
    file = "model.safetensors" if spec.max_shard_size == "5GB" else "model-00002-of-00002.safetensors"
    with pytest.raises(MergeError, match=rf"^b: merged values do not fit into float16.*{tmp_path}/merged/{file}"):
        merge_checkpoints(*folders, tmp_path / "merged", spec.model_copy(update={"dtype": "float16"}))
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]
    merge_checkpoints(*folders, tmp_path / "merged", spec.model_copy(update={"dtype": "bfloat16"}))
    assert load(tmp_path / "merged")["b"][2999].item() == pytest.approx(-80_000, rel=0.01)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_a_result_beyond_float32_is_refused(tmp_path: Path, stored: torch.dtype) -> None:
    pivot = {"a": torch.zeros(10, dtype=stored)}
    folders = save_all(tmp_path, pivot, [{"a": torch.ones(10, dtype=stored)}])
    spec = MergeSpec(method="task_arithmetic", scaling_coefficient=1e39)
    with pytest.raises(MergeError, match="a: merged values do not fit into"):
        merge_checkpoints(*folders, tmp_path / "merged", spec)


@pytest.mark.skipif(sys.platform != "linux", reason="room is taken at once on Linux only")
@pytest.mark.parametrize("limit", [50_000, 10], ids=["weights", "header"])
def test_a_lack_of_room_is_said_before_anything_is_merged(tmp_path: Path, limit: int) -> None:
    tensors = {"a": torch.ones(100_000)}
    folders = save_all(tmp_path, tensors, [tensors])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    steps: list[int] = []
    open_files = len(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(MergeError, match=r"no room for the merged weights: model.safetensors needs 0.0 GB"):
            merge_checkpoints(
                *folders, tmp_path / "merged", MergeSpec(), progress=lambda done, total: steps.append(done)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # A file that stayed open would keep its room on the disk.
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert steps == [] and not [path for path in tmp_path.iterdir() if "merged" in path.name]
