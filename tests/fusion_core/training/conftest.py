"""A pivot, and shards fused on another model, for every test of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fusion_core.training_fixtures import random_dialogues, write_fused_shards, write_tiny_llama


@pytest.fixture(scope="module")
def pivot(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("pivot"), seed=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    source = write_tiny_llama(tmp_path_factory.mktemp("source"), seed=2, spread=0.4)
    return write_fused_shards(tmp_path_factory.mktemp("fused"), source, random_dialogues(20))
