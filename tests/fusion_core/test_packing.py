"""Packed dialogues are read as each alone; a model that lets them see each other is not packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion_core.extraction import extract as extraction
from fusion_core.packing import keeps_packed_apart, pack, skips_padding
from tests.fusion_core.extraction.test_extract import (
    OutOfMemoryAbove,
    assert_equals_own_logits,
    extract,
    some_dialogues,
)
from tests.fusion_core.extraction.test_output_heads import small_model


def test_pack_counts_every_sequence_from_0() -> None:
    ids, positions, starts = pack([np.array([5, 6, 7], np.int32), np.array([8], np.int32), np.array([9, 4], np.int32)])
    assert ids.tolist() == [[5, 6, 7, 8, 9, 4]] and positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert starts.tolist() == [0, 3, 4] and ids.dtype == positions.dtype == torch.int64


def test_only_attention_without_padding_gains() -> None:
    model = small_model("Llama")
    assert not skips_padding(model)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert skips_padding(model)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "GPTNeoX", "Phi"])
def test_packed_equals_unpacked(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """With a mask in place of variable lengths, which is what transformers makes of the same positions elsewhere."""
    monkeypatch.setattr(extraction, "skips_padding", lambda model: True)
    model, dialogues = small_model(family), some_dialogues()
    assert keeps_packed_apart(model, torch.arange(3, 40))
    rows = []
    body = model.base_model.forward

    def watch(input_ids, **settings):
        rows.append(len(input_ids))
        return body(input_ids=input_ids, **settings)

    monkeypatch.setattr(model.base_model, "forward", watch)
    top_k, statistics = extract(model, dialogues)
    assert statistics.padding_share == 0.0 and set(rows) == {1} and len(rows) < len(dialogues)
    monkeypatch.undo()
    assert_equals_own_logits(model, dialogues, top_k)


def test_a_model_that_mixes_packed_dialogues_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "skips_padding", lambda model: True)
    model, dialogues = small_model("Llama"), some_dialogues()
    own = model.model.forward

    def deaf(input_ids, position_ids=None, **settings):
        return own(input_ids=input_ids, **settings)

    monkeypatch.setattr(model.model, "forward", deaf)
    top_k, statistics = extract(model, dialogues)
    assert statistics.padding_share > 0.0
    assert_equals_own_logits(model, dialogues, top_k)


def test_out_of_memory_halves_a_packed_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "skips_padding", lambda model: True)
    model, dialogues = small_model("Llama"), some_dialogues()
    expected, _ = extract(model, dialogues)
    body = model.model
    monkeypatch.setattr(body, "forward", OutOfMemoryAbove(body.forward, 150, torch.OutOfMemoryError("full")))
    found, statistics = extract(model, dialogues, batch_tokens=700)
    assert statistics.batch_tokens <= 150 and statistics.padding_share == 0.0
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
