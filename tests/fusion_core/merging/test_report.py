"""What a user can read from a merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fusion_core.errors import MergeError
from fusion_core.merging import MergeReport, MergeSpec, merge_checkpoints
from tests.fusion_core.merging.checkpoints import save_all


@pytest.fixture
def report(tmp_path: Path) -> MergeReport:
    pivot = {"model.layers.0.w": torch.zeros(4), "model.layers.10.w": torch.zeros(2), "head": torch.zeros(2)}
    targets = [
        {
            "model.layers.0.w": torch.tensor([3.0, 0.0, 0.0, 0.0]),
            "model.layers.10.w": torch.ones(2),
            "head": torch.zeros(2),
        },
        {
            "model.layers.0.w": torch.tensor([1.0, 1.0, 1.0, 1.0]),
            "model.layers.10.w": -torch.ones(2),
            "head": torch.zeros(2),
        },
    ]
    return merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", MergeSpec())


def test_numbers_by_hand(report: MergeReport) -> None:
    first = report.statistics["model.layers.0.w"]
    assert first.norms.tolist() == pytest.approx([3.0, 2.0])
    assert first.cosines[0, 1] == pytest.approx(0.5)
    assert first.changed_share.tolist() == [0.25, 1.0]
    assert report.weights["model.layers.0.w"] == pytest.approx([9 / 13, 4 / 13])
    second = report.statistics["model.layers.10.w"]
    assert second.cosines[0, 1] == pytest.approx(-1.0)
    assert report.weights["model.layers.10.w"] == [0.5, 0.5]
    # Nothing changed: no norm, no angle.
    assert report.statistics["head"].cosines.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert report.total.count == 8
    assert report.total.norms.tolist() == pytest.approx([11**0.5, 6**0.5])
    assert report.total.changed_share.tolist() == [3 / 8, 6 / 8]
    assert report.mean_weights() == pytest.approx([(9 / 13 * 4 + 2) / 8, (4 / 13 * 4 + 2) / 8])


def test_saved_json_and_parquet_hold_the_same(report: MergeReport, tmp_path: Path) -> None:
    report.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/merge_report.json").read_text(encoding="utf-8"))
    assert saved["method"] == "varm" and saved["targets"] == ["target-0", "target-1"]
    rows = pq.read_table(tmp_path / "saved/merge_report.parquet").to_pylist()
    assert len(rows) == 6
    for row in rows:
        tensor = saved["tensors"][row["tensor"]]
        number = row["target_number"]
        assert row["target"] == f"target-{number}"
        assert row["weight"] == tensor["weights"][number] == report.weights[row["tensor"]][number]
        assert row["delta_norm"] == tensor["delta_norms"][number]
        assert row["cosines"] == tensor["delta_cosines"][number]
        assert row["changed_share"] == tensor["changed_shares"][number]
    assert {(row["layer"], row["matrix"]) for row in rows} == {
        ("model.layers.0", "w"),
        ("model.layers.10", "w"),
        ("", "head"),
    }


def test_names_that_are_given_stand_for_folders(report: MergeReport, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("pivot", "target-0", "target-1")]
    for name in ("one", "two"):
        for folder in folders:
            (tmp_path / name / folder.name).parent.mkdir(exist_ok=True)
            shutil.copytree(folder, tmp_path / name / f"{folder.name}-{name}")
    merged = []
    for name in ("one", "two"):
        pivot, *targets = (tmp_path / name / f"{folder.name}-{name}" for folder in folders)
        names = ["the pivot", "a", "b"]
        made = merge_checkpoints(pivot, targets, tmp_path / name / "merged", MergeSpec(), names=names)
        assert (made.pivot, made.targets) == ("the pivot", ["a", "b"])
        merged.append((tmp_path / name / "merged" / "merge_report.json").read_bytes())
    assert merged[0] == merged[1]
    with pytest.raises(MergeError, match="2 names were given for a pivot and 2 targets"):
        merge_checkpoints(folders[0], folders[1:], tmp_path / "merged", MergeSpec(), names=["a", "b"])


def test_heat_map_is_layers_by_matrices(report: MergeReport) -> None:
    layers, matrices, weights = report.heat_map(0)
    assert layers == ["model.layers.0", "model.layers.10"] and matrices == ["w"]
    np.testing.assert_allclose(weights, [[9 / 13], [0.5]])
