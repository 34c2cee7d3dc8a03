"""The toys: four architectures, and a tokenizer that keeps every byte and loads as itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.scratch.make_models import check_loads_as_itself
from experiments.scratch.models import TOYS, sentencepiece_like
from fusion_core.dialogues import Dialogue, Turn
from fusion_core.encoding.encoder import Encoder

TEXTS = ["How many  eggs are left?\n12 - 3 = 9 eggs", "def add(a, b):\n    return a + b", "naïve 你好 🙂"]


def test_the_toys_are_of_four_kinds() -> None:
    with torch.device("meta"):
        built = [AutoModelForCausalLM.from_config(toy.config(1000, 1, 2)) for toy in TOYS.values()]
    assert {one.config.model_type for one in built} == {"llama", "gpt_neox", "qwen2", "mixtral"}
    assert len({sum(weight.numel() for weight in one.parameters()) for one in built}) == 4


@pytest.mark.parametrize("size", [300, 400])
def test_a_sentencepiece_like_tokenizer_keeps_every_byte_and_loads_as_itself(size: int, tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(size)(TEXTS[:2])
    assert len(tokenizer) <= size
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    TOYS["dialogue"].config(len(tokenizer), 1, 2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_loads_as_itself(tokenizer, tmp_path, TEXTS)
    turns = (Turn("user", TEXTS[0]), Turn("assistant", TEXTS[2]), Turn("user", "?"), Turn("assistant", TEXTS[1]))
    encoded = Encoder(tokenizer, 4096, "toy").encode(Dialogue("d", "", turns))
    assert encoded.response_bytes == len(TEXTS[1].encode()) + len(TEXTS[2].encode())
    assert encoded.is_end_of_turn.sum() == 2
