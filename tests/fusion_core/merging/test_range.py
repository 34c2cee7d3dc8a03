"""Deltas whose squares float32 does not hold are weighed and selected as those of any other size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_core.merging import MergeSpec, merge_checkpoints
from fusion_core.merging.kernels import CHUNK
from tests.fusion_core.merging.checkpoints import Tensors, load, save_all

SPECS = [
    MergeSpec(),
    MergeSpec(granularity="layer", weighting="softmax", temperature=0.5),
    MergeSpec(granularity="parameter"),
    MergeSpec(method="slerp"),
    MergeSpec(method="sce"),
    MergeSpec(method="sce", select_top_k=0.3),
    MergeSpec(method="ties", density=0.3),
    MergeSpec(method="dare", density=0.3),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.method}-{spec.granularity}-{spec.select_top_k}")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_the_size_of_all_deltas_changes_nothing_but_the_size(
    tmp_path: Path, spec: MergeSpec, stored: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    targets: list[Tensors] = [
        {"model.layers.0.w": (torch.randn(2 * CHUNK + 5, generator=generator) * (1 + number)).to(stored)}
        for number in range(3)
    ]
    pivot = {"model.layers.0.w": torch.zeros(2 * CHUNK + 5, dtype=stored)}
    results = {}
    # Powers of two, so that scaling rounds nothing: squares of the deltas are near 1, 1e-42, 1e-54 and 1e48.
    for power in (0, -70, -90, 80):
        scaled = [{name: tensor * 2.0**power for name, tensor in target.items()} for target in targets]
        report = merge_checkpoints(*save_all(tmp_path, pivot, scaled), tmp_path / "merged", spec)
        merged = load(tmp_path / "merged")["model.layers.0.w"].double() * 2.0**-power
        results[power] = (merged, report.weights["model.layers.0.w"], report.statistics["model.layers.0.w"])
    merged, weights, statistics = results.pop(0)
    for power, (other, other_weights, other_statistics) in results.items():
        torch.testing.assert_close(other, merged, rtol=2.0**-7 if stored == torch.bfloat16 else 1e-6, atol=1e-5)
        np.testing.assert_allclose(other_weights, weights, rtol=1e-5)
        np.testing.assert_allclose(other_statistics.norms * 2.0**-power, statistics.norms, rtol=1e-5)
        np.testing.assert_allclose(other_statistics.absolute * 2.0**-power, statistics.absolute, rtol=1e-5)
        np.testing.assert_allclose(other_statistics.cosines, statistics.cosines, atol=1e-5)
        assert other_statistics.changed.tolist() == statistics.changed.tolist()


def test_tiny_and_ordinary_targets_are_told_apart(tmp_path: Path) -> None:
    ordinary = {"w": torch.full((CHUNK,), 3.0)}
    tiny = {"w": torch.full((CHUNK,), 2.0**-80)}
    folders = save_all(tmp_path, {"w": torch.zeros(CHUNK)}, [ordinary, tiny, {"w": torch.zeros(CHUNK)}])
    report = merge_checkpoints(*folders, tmp_path / "merged", MergeSpec())
    assert report.weights["w"] == pytest.approx([1.0, (2.0**-80 / 3) ** 2, 0.0], rel=1e-5)
    expected = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(report.statistics["w"].cosines, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-310])
def test_a_tiny_temperature_picks_one_target(tmp_path: Path, temperature: float) -> None:
    targets = [{"w": torch.full((4,), value)} for value in (1.0, 3.0, 2.0)]
    folders = save_all(tmp_path, {"w": torch.zeros(4)}, targets)
    spec = MergeSpec(weighting="softmax", temperature=temperature)
    assert merge_checkpoints(*folders, tmp_path / "merged", spec).weights["w"] == [0.0, 1.0, 0.0]
    assert load(tmp_path / "merged")["w"].tolist() == [3.0] * 4
