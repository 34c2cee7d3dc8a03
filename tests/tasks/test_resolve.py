"""What pins a recipe's models."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.config import FusionConfig
from fusion_core.models.identity import ResolvedModel
from tasks import resolve
from tests.fusion_core.chat_fixtures import CHATML, OPENCHAT, byte_level_tokenizer


def test_of_several_templates_the_pivots_default_one_is_read_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = {"pivot": {"default": CHATML, "tool_use": OPENCHAT}, "source": OPENCHAT}

    def load_tokenizer(model: ResolvedModel):
        return byte_level_tokenizer(templates[model.name])

    monkeypatch.setattr(
        resolve, "resolve_model", lambda model: ResolvedModel(model.name, tmp_path, model.name, model.name)
    )
    monkeypatch.setattr(resolve, "check_checkpoint", lambda model: None)
    monkeypatch.setattr(resolve, "check_tokenizer_fits", lambda model, tokenizer: None)
    monkeypatch.setattr(resolve, "load_tokenizer", load_tokenizer)
    (tmp_path / "data.jsonl").write_text("{}\n", encoding="utf-8")
    config = FusionConfig.model_validate(
        {
            "name": "recipe",
            "pivot": {"name": "pivot", "path": "pivot"},
            "sources": [{"name": "source", "path": "source"}],
            "dialogues": {"files": [{"path": tmp_path / "data.jsonl"}]},
            "extraction": {"template": "pivot"},
        }
    )
    fusion = resolve.resolve_fusion(config)
    assert fusion.pivot_template == CHATML
    assert [source.chat_template for source in fusion.sources] == [CHATML]
