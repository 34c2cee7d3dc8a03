"""Counts of a shard, against the shard read as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusion_core.distributions import TopK
from fusion_core.errors import ShardError
from fusion_core.shard_counts import ShardCounts, count_shard
from fusion_core.shards import Shard, ShardMetadata, write_shard


def test_counts_are_those_of_the_arrays(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    splits = np.array([0, 3, 3, 10, 10], dtype=np.int64)
    log_probs = np.log(draw.dirichlet(np.ones(5), 10)).astype(np.float32)
    top_k = TopK(
        draw.integers(0, 99, (10, 5), dtype=np.int32),
        -np.sort(-log_probs, axis=1),
        draw.uniform(-4, 0, 10).astype(np.float32),
        splits,
    )
    sizes = np.array([11, 0, 40, 0], dtype=np.int64)
    shard = Shard(top_k, ["a", "b", "c", "d"], ["x"] * 4, sizes, ShardMetadata("m", "d", 5))
    write_shard(tmp_path / "shard.parquet", shard)
    nats = -float(top_k.label_log_probs.sum(dtype=np.float64))
    assert count_shard(tmp_path / "shard.parquet") == ShardCounts(10, 4, 2, 51, nats)


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "shard.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(ShardError, match=r"shard\.parquet cannot be read"):
        count_shard(tmp_path / "shard.parquet")
