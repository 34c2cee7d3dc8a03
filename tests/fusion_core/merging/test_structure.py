"""Differences between pivot and targets are reported together, before a byte is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusion_core.errors import MergeError
from fusion_core.merging import MergeSpec, merge_checkpoints
from tests.fusion_core.merging.checkpoints import random_pivot, save_all, trained_from


def refusal(tmp_path: Path, *targets: dict[str, torch.Tensor]) -> str:
    folders = save_all(tmp_path, random_pivot(), targets)
    with pytest.raises(MergeError) as caught:
        merge_checkpoints(*folders, tmp_path / "merged", MergeSpec())
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]
    return str(caught.value)


def test_every_difference_is_in_one_message(tmp_path: Path) -> None:
    first, second = (trained_from(random_pivot(), seed) for seed in (1, 2))
    del first["model.norm.weight"]
    first["lm_head.weight"] = torch.zeros(3, 3)
    first["model.embed_tokens.weight"] = torch.zeros(301, 257)
    second["model.layers.0.mlp.up_proj.weight"] = torch.zeros(7, 10)
    second["model.layers.1.mlp.up_proj.weight"] = torch.zeros(7, 9, dtype=torch.float16)
    message = refusal(tmp_path, first, second)
    assert "target-0 lacks model.norm.weight" in message
    assert "target-0 has lm_head.weight besides" in message
    assert "a vocabulary of 301 where the pivot has 300: tokens were added or removed" in message
    assert "target-1: model.layers.0.mlp.up_proj.weight has shape [7, 10], the pivot's is [7, 9]" in message
    assert "target-1: model.layers.1.mlp.up_proj.weight is F16, the pivot's is F32" in message


def test_another_architecture_is_not_listed_to_its_end(tmp_path: Path) -> None:
    message = refusal(tmp_path, {f"h.{number}.weight": torch.zeros(1) for number in range(100)})
    assert "and 91 more" in message
    assert len(message) < 5000
