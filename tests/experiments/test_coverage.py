"""The mass on the next token, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.alignments import ALIGNMENTS
from experiments.coverage import gold_probability
from experiments.lab import load_lab_recipe
from fusion_core.distributions import TopK
from fusion_core.shards import Shard, ShardMetadata, TrainingInputs
from fusion_core.sweeps import with_settings


def test_the_gold_tokens_mass_is_found_by_dialogue_and_is_0_where_nothing_arrives() -> None:
    # Two dialogues: tokens 1 2 3 with responses after the first two, and 4 5 with one after the first.
    inputs = TrainingInputs(
        np.array([1, 2, 3, 4, 5], np.int32), np.array([0, 3, 5], np.int64), np.array([0, 1, 0], np.int32)
    )
    with np.errstate(divide="ignore"):
        top_k = TopK(
            np.array([[9, 2], [-1, -1], [5, 3]], np.int32),
            np.log(np.array([[0.7, 0.2], [0.0, 0.0], [0.4, 0.3]], np.float32)),
            np.log(np.array([0.2, 0.5, 0.4], np.float32)),
            np.array([0, 2, 3], np.int64),
        )
    metadata = ShardMetadata("model", "dataset", 2, "top_k")
    shard = Shard(top_k, ["a", "b"], ["code", "code"], np.array([2, 1], np.int64), metadata, inputs)
    assert gold_probability(shard) == pytest.approx((0.2 / 0.9 + 0.0 + 0.4 / 0.7) / 3)


def test_every_way_of_alignment_is_a_valid_recipe() -> None:
    recipe = load_lab_recipe("held_out")
    configs = [with_settings(recipe, settings).alignment for settings in ALIGNMENTS.values()]
    assert len({str(config.settings_in_effect) for config in configs}) == len(ALIGNMENTS)
