"""What identifies a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.config import ModelConfig
from fusion_core.models import resolve_model

FILES = ("config.json", "model.safetensors", "merges.txt", "modeling_own.py", "tokenizer_config.json", "vocab.json")


def digest(folder: Path, trusts: bool) -> str:
    return resolve_model(
        ModelConfig.model_validate({"name": "model", "path": folder, "trust_remote_code": trusts})
    ).digest


@pytest.mark.parametrize(
    ("changed", "trusts", "has_tokenizer_json", "differs"),
    [
        ("model.safetensors", False, True, True),
        ("tokenizer_config.json", False, True, True),
        ("vocab.json", False, False, True),
        ("merges.txt", False, False, True),
        ("vocab.json", False, True, False),
        ("modeling_own.py", True, True, True),
        ("modeling_own.py", False, True, False),
    ],
)
def test_digest_covers_the_files_that_decide_the_outputs(
    tmp_path: Path, changed: str, trusts: bool, has_tokenizer_json: bool, differs: bool
) -> None:
    for name in (*FILES, *(["tokenizer.json"] if has_tokenizer_json else [])):
        (tmp_path / name).write_text(name, encoding="utf-8")
    before = digest(tmp_path, trusts)
    (tmp_path / changed).write_text("something else", encoding="utf-8")
    assert (digest(tmp_path, trusts) != before) == differs


def test_trusting_a_models_own_code_makes_it_another_model(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert digest(tmp_path, True) != digest(tmp_path, False)
