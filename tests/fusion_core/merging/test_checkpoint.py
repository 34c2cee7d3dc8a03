"""Checkpoint folders whose headers, indices or files lie."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.errors import MergeError
from fusion_core.merging.checkpoint import Checkpoint
from tests.messages import one_sentence

TENSORS = {"w": torch.ones(4), "steps": torch.arange(5)}


def refusal(folder: Path) -> str:
    with pytest.raises(MergeError) as caught:
        Checkpoint.open(folder)
    return one_sentence(caught)


def with_header(folder: Path, change: dict[str, dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, fields in change.items():
        header[name] = header.get(name, {}) | fields
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": {"shape": [4]}}, "'steps' has not the bytes of its shape"),
        ({"steps": {"dtype": "U8"}}, "'steps' has not the bytes of its shape"),
        ({"steps": {"dtype": "FOO"}}, "cannot be read"),
        ({"a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "cannot be read"),
        ({"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "cannot be read"),
    ],
)
def test_lies_about_tensors_that_are_only_copied_are_found(
    tmp_path: Path, change: dict[str, dict[str, Any]], problem: str
) -> None:
    with_header(tmp_path, change)
    assert problem in refusal(tmp_path)


def test_bytes_of_no_tensor_and_files_of_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    assert "bytes that belong to none of its tensors" in refusal(tmp_path)
    # As after a tensor was taken out of the header alone.
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    del header["w"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert "bytes that belong to none of its tensors" in refusal(tmp_path)
    save_file({}, path)
    assert "has no tensors" in refusal(tmp_path)


def test_types_of_less_than_a_byte_are_read(tmp_path: Path) -> None:
    with_header(tmp_path, {"steps": {"dtype": "F4", "shape": [80]}})
    with closing(Checkpoint.open(tmp_path)) as checkpoint:
        assert checkpoint.tensors["steps"].size_bytes == 40


def test_a_tensor_that_the_index_promises_must_be_there(tmp_path: Path) -> None:
    save_file({"w": TENSORS["w"]}, tmp_path / "part.safetensors")
    index = {"weight_map": {"w": "part.safetensors", "steps": "part.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "its index names the tensor 'steps', which is in none of its files" in refusal(tmp_path)


def test_only_files_are_opened(tmp_path: Path) -> None:
    # Opening a pipe would wait for somebody to write into it.
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "lost.safetensors").symlink_to(tmp_path / "nowhere")
    assert "has no *.safetensors" in refusal(tmp_path)
