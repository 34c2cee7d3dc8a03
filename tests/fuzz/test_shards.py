"""Parquet shards, of distributions and of dialogues, and what trains on them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion_core.dialogues.shards import SCHEMA, load_dialogues, to_table
from fusion_core.dialogues.turns import Dialogue, Turn, dialogue_id
from fusion_core.distributions import TopK
from fusion_core.shards import METADATA_KEY, Shard, ShardMetadata, TrainingInputs, read_shard, write_shard
from fusion_core.training.data import FusedShards
from tests.fuzz.fuzzing import NASTY, counts, fuzz, json_bytes, mutated_bytes, mutated_value

METADATA = {"model_digest": "m", "dataset_digest": "d", "top_k": 3, "truncation": "top_k", "schema_version": 1}
OTHER_TYPES = (pa.string(), pa.int8(), pa.float64(), pa.list_(pa.string()), pa.large_list(pa.int64()), pa.null())


def a_shard() -> Shard:
    """Three dialogues, one without a position."""
    splits = np.array([0, 2, 2, 5])
    return Shard(
        TopK(
            np.arange(15, dtype=np.int32).reshape(5, 3),
            np.log(np.tile(np.float32([0.5, 0.25, 0.125]), (5, 1))),
            np.log(np.full(5, 0.5, np.float32)),
            splits,
        ),
        ["a", "b", "c"],
        ["code", "code", "talk"],
        np.array([7, 0, 9]),
        ShardMetadata("m", "d", 3),
        TrainingInputs(np.arange(14, dtype=np.int32), np.array([0, 5, 6, 14]), np.array([2, 3, 1, 2, 6], np.int32)),
    )


def rewritten(rng: random.Random, table: pa.Table, metadata: bytes | None) -> bytes:
    """Write a table again with other columns, types, values or metadata."""
    table = table.replace_schema_metadata(None if metadata is None else {METADATA_KEY: metadata})
    for _ in range(rng.choice((0, 1, 1, 2))):
        place = rng.randrange(table.num_columns)
        name, values = table.column_names[place], table.column(place).to_pylist()
        kind = rng.randrange(4)
        if kind == 0:
            table = table.remove_column(place)
        elif kind == 1:
            table = table.set_column(place, name, pa.nulls(len(table), rng.choice(OTHER_TYPES)))
        else:
            row = rng.randrange(len(values))
            values[row] = mutated_value(rng, values[row]) if kind == 2 else rng.choice(NASTY)
            try:
                changed = pa.array(values, table.schema.types[place])
            except (pa.ArrowException, OverflowError, TypeError, ValueError, RecursionError):
                continue
            table = table.set_column(place, name, changed)
        if not table.num_columns:
            break
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return buffer.getvalue().to_pybytes()


@counts
def test_shards_of_distributions(count: int, tmp_path: Path) -> None:

    path = tmp_path / "shard-00000.parquet"
    write_shard(path, a_shard())
    valid, table = path.read_bytes(), pq.read_table(path)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutated_bytes(rng, valid)
        metadata = mutated_value(rng, METADATA) if rng.random() < 0.5 else METADATA
        text = json_bytes(metadata)
        return rewritten(rng, table, text if rng.random() < 0.95 else None)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        shard = read_shard(path)
        assert shard.top_k.token_ids.shape == (shard.top_k.positions, shard.metadata.top_k)
        assert len(shard.dialogue_ids) == len(shard.response_bytes) == shard.top_k.dialogues
        assert np.all(np.diff(shard.top_k.row_splits) >= 0)
        if shard.inputs is not None:
            shards = FusedShards([path])
            batch = shards.micro_batch(range(len(shards.index)), 0)
            assert len(batch.labels) == shard.top_k.positions

    fuzz(count, make, read, tmp_path)


@counts
def test_shards_of_dialogues(count: int, tmp_path: Path) -> None:
    turns = (Turn("user", "Why?"), Turn("assistant", "Because."))
    table = to_table([Dialogue(dialogue_id(turns), "code", turns)] * 3)
    path = tmp_path / "dialogues-00000.parquet"
    pq.write_table(table, path)
    valid = path.read_bytes()

    def make(rng: random.Random) -> bytes:
        return mutated_bytes(rng, valid) if rng.random() < 0.5 else rewritten(rng, table, None)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for dialogue in load_dialogues(path):
            values: list[Any] = [dialogue.id, dialogue.domain, *(part for turn in dialogue.turns for part in turn)]
            assert all(isinstance(value, str) for value in values)

    fuzz(count, make, read, tmp_path)
    assert SCHEMA.names == ["id", "domain", "turns"]
