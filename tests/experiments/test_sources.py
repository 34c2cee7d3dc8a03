"""What more lab sources learn: the responses of dialogues, and none of those that are scored."""

from __future__ import annotations

import json
from pathlib import Path

from deployments.demo import make_adapters, raw_data
from deployments.demo.chat_tokenizers import byte_level_tokenizer
from experiments.lab import RECIPE
from experiments.sources import models
from experiments.sources.make_adapters import marked

DATA = RECIPE.with_name("data")


def committed(domain: str) -> list[raw_data.Dialogue]:
    lines = (raw_data.COMMITTED / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines[:10]]


def test_the_tokens_that_are_learnt_are_those_of_the_demos_adapters() -> None:
    tokenizer = byte_level_tokenizer()
    dialogues = committed("dialogue") + committed("code")
    encoded = models.encode(dialogues, tokenizer, models.LONGEST)
    assert all(one is not None for one in encoded)
    for dialogue, one in zip(dialogues, encoded, strict=True):
        ours, demos = marked(one), make_adapters.encode(dialogue, tokenizer)
        length = len(ours.ids)
        assert (ours.ids, ours.response) == (demos.ids[:length], demos.response[:length])
        # The template's line break after the last response is read by nobody.
        assert tokenizer.decode(demos.ids[length:]) == "\n"
    cut = models.encode(dialogues, tokenizer, 100)
    assert [one is None for one in cut] == [len(one.input_ids) > 100 for one in encoded]


def test_no_dialogue_of_the_experiments_is_drawn(tmp_path: Path) -> None:
    held_out = [json.loads(line) for line in (DATA / "held_out" / "code.jsonl").read_text("utf-8").splitlines()]
    openings = {raw_data.opening(row["messages"]) for row in held_out}
    assert openings <= models.experiments_openings()
    assert len(models.experiments_openings()) == 660
