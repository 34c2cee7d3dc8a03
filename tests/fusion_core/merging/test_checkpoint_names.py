"""Names in a checkpoint's index that no file of its folder can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusion_core.errors import MergeError
from fusion_core.merging.checkpoint import Checkpoint


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "x" * 256, "é" * 128, "a\x00b"])
def test_an_index_with_a_name_of_no_file_is_refused(name: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.weight": name}}), encoding="utf-8")
    with pytest.raises(MergeError, match="is no safetensors index"):
        Checkpoint.open(tmp_path)
