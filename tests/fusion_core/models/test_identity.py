"""What identifies a model, and what makes it unusable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fusion_core.config import ModelConfig
from fusion_core.errors import ModelError, TokenizerError
from fusion_core.models.checks import check_tokenizer_fits
from fusion_core.models.identity import ResolvedModel, resolve_model
from fusion_core.models.loading import load_model
from tests.fusion_core.chat_fixtures import CHATML, byte_level_tokenizer
from tests.fusion_core.extraction.test_output_heads import small_model

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


def saved(folder: Path) -> ResolvedModel:
    small_model("Llama").save_pretrained(folder)
    return ResolvedModel("small", folder, "d" * 64, "t" * 64, dtype="float32")


def set_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_tensors_that_the_config_has_no_place_for_are_named(tmp_path: Path) -> None:
    model = saved(tmp_path)
    set_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"'small': 9 tensors such as 'model\.layers\.1\..*number of layers"):
        load_model(model, torch.device("cpu"))


def test_tensors_that_are_missing_are_named(tmp_path: Path) -> None:
    model = saved(tmp_path)
    set_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"'small': 9 tensors such as 'model\.layers\.2\..*incomplete"):
        load_model(model, torch.device("cpu"))


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path), byte_level_tokenizer(CHATML)
    last = max(tokenizer.get_vocab().values())
    set_config(tmp_path, vocab_size=last + 1)
    check_tokenizer_fits(model, tokenizer)
    set_config(tmp_path, vocab_size=last)
    with pytest.raises(
        TokenizerError, match=rf"'small': token .* has the id {last} where its embedding has {last} rows"
    ):
        check_tokenizer_fits(model, tokenizer)
