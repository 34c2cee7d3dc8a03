"""Safetensors headers and indices, as the merge reads them."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging import merge_checkpoints
from fusion_core.merging.checkpoint import Checkpoint
from tests.fuzz.fuzzing import counts, fuzz, json_bytes, mutated_bytes, mutated_value

TENSORS = {
    "model.embed.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "model.layers.0.weight": torch.ones(3, 3, dtype=torch.bfloat16),
    "model.steps": torch.arange(4),
    "model.empty": torch.zeros(0, 3, dtype=torch.float16),
}
SIZES = (0, 1, -1, 3, 2**31, 2**62, 2**63, 10**30, 1.5, True, "3", None, [3])


def with_header(header: Any, data: bytes) -> bytes:
    """Put a header of any content before the bytes of tensors."""
    text = json_bytes(header)
    return len(text).to_bytes(8, "little") + text + data


def changed_header(rng: random.Random, header: dict[str, Any]) -> Any:
    """Change what stands in a header, its sizes above all."""
    header = mutated_value(rng, header)
    if isinstance(header, dict) and rng.random() < 0.5:
        entries = [entry for entry in header.values() if isinstance(entry, dict)]
        entry = rng.choice(entries) if entries else {}
        for key in ("shape", "data_offsets"):
            sizes = entry.get(key)
            if isinstance(sizes, list) and sizes and rng.random() < 0.6:
                sizes[rng.randrange(len(sizes))] = rng.choice(SIZES)
    return header


@counts
def test_headers(count: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    valid = path.read_bytes()
    length = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]

    def make(rng: random.Random) -> bytes:
        return mutated_bytes(rng, valid) if rng.random() < 0.4 else with_header(changed_header(rng, header), data)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with closing(Checkpoint.open(tmp_path)) as checkpoint:
            for name, entry in checkpoint.tensors.items():
                buffer = np.empty(entry.size_bytes, np.uint8)
                checkpoint.read_into(name, memoryview(buffer), 0)
                assert not entry.is_float or entry.count >= 0

    fuzz(count, make, read, tmp_path)


@counts
def test_indices(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {}
    for name, part in zip(names, (list(TENSORS)[:2], list(TENSORS)[2:]), strict=True):
        save_file({tensor: TENSORS[tensor] for tensor in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    save_file({"outside": torch.ones(1)}, tmp_path / "outside.safetensors")
    index = {"metadata": {"total_size": 82}, "weight_map": weight_map}

    def make(rng: random.Random) -> bytes:
        changed = mutated_value(rng, index)
        if rng.random() < 0.2:
            changed = {"weight_map": {**weight_map, "outside": "../outside.safetensors"}}
        text = with_header(changed, b"")[8:]
        return mutated_bytes(rng, text) if rng.random() < 0.2 else text

    def read(content: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(content)
        with closing(Checkpoint.open(folder)) as checkpoint:
            assert "outside" not in checkpoint.tensors

    fuzz(count, make, read, tmp_path)


@counts
def test_merges_of_changed_checkpoints(count: int, tmp_path: Path) -> None:
    for name in ("pivot", "target"):
        (tmp_path / name).mkdir()
        save_file(TENSORS, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    valid = (tmp_path / "target" / "model.safetensors").read_bytes()
    length = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    spec = MergeSpec(method="varm")

    def make(rng: random.Random) -> bytes:
        return with_header(changed_header(rng, header), mutated_bytes(rng, data) if rng.random() < 0.5 else data)

    def read(content: bytes) -> None:
        (tmp_path / "target" / "model.safetensors").write_bytes(content)
        merge_checkpoints(tmp_path / "pivot", [tmp_path / "target"], tmp_path / "merged", spec)
        with closing(Checkpoint.open(tmp_path / "merged")) as merged:
            assert set(merged.tensors) == set(TENSORS)

    fuzz(count, make, read, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"pivot", "target", "merged"}
