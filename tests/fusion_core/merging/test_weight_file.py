"""Files of weights: failing reads, tensors that other writers did not align."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fusion_core.errors import MergeError
from fusion_core.merging import MergeSpec, merge_checkpoints
from fusion_core.merging.weight_file import WeightFile
from tests.fusion_core.merging.checkpoints import load, save_all


def test_any_part_can_be_read_again(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    file = WeightFile(tmp_path / "file")
    for start, stop in ((10_001, 60_001), (0, 100_000), (99_999, 100_000), (5, 5)):
        buffer = bytearray(stop - start)
        file.fetch(start, stop - start)
        file.read_into(memoryview(buffer), start)
        assert bytes(buffer) == content[start:stop]
    file.close()


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    file = WeightFile(tmp_path / "file")
    os.truncate(tmp_path / "file", 10_000)
    with pytest.raises(MergeError, match=rf"{tmp_path}/file could not be read any more at byte 10,000 .*ends there"):
        file.read_into(memoryview(bytearray(50_000)), 5_000)
    file.close()


@pytest.mark.parametrize(
    "spec",
    [MergeSpec(), MergeSpec(method="linear"), MergeSpec(method="ties", density=0.5)],
    ids=lambda spec: spec.method,
)
def test_a_target_that_becomes_shorter_stops_the_merge(tmp_path: Path, spec: MergeSpec) -> None:
    tensors = {f"w{number}": torch.ones(100_000) for number in range(300)}
    pivot, targets = save_all(tmp_path, tensors, [tensors, tensors])

    def cut(done: int, total: int) -> None:
        if done == 1:
            os.truncate(targets[1] / "model.safetensors", 1 << 20)

    with pytest.raises(MergeError, match=r"target-1/model.safetensors could not be read any more"):
        merge_checkpoints(pivot, targets, tmp_path / "merged", spec, progress=cut)
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


@pytest.mark.parametrize("shift", range(1, 8))
def test_tensors_that_are_not_aligned_are_merged_as_well(tmp_path: Path, shift: int) -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"w": torch.randn(1000, generator=generator)} for _ in range(3)]
    pivot, targets = save_all(tmp_path, models[0], models[1:])
    merge_checkpoints(pivot, targets, tmp_path / "expected", MergeSpec())
    file = targets[0] / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * shift
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
    assert torch.equal(load(tmp_path / "merged")["w"], load(tmp_path / "expected")["w"])
