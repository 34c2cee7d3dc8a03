"""Shards: what is written is read back, in few bytes, by others too, and what is broken is refused."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_core import shard_columns
from fusion_core.config import ExtractionConfig
from fusion_core.distributions import TopK
from fusion_core.errors import ShardError
from fusion_core.extraction.extract import extract_shard
from fusion_core.shards import (
    METADATA_KEY,
    Shard,
    ShardMetadata,
    TrainingInputs,
    read_shard,
    write_shard,
)

BYTES_BUDGET = 40


def distributions(positions: int, vocabulary: int, k: int = 10, zipf: bool = True, seed: int = 0) -> TopK:
    """Random entries: ids by Zipf's law or all alike, the largest of normal logits."""
    random = np.random.default_rng(seed)
    if zipf:
        token_ids = np.exp(random.random((positions, k)) * np.log(vocabulary)).astype(np.int32) - 1
    else:
        token_ids = random.integers(0, vocabulary, (positions, k), dtype=np.int32)
    # The k largest of V normal logits, of a spread that differs among positions, without drawing all V.
    spread = 1 + 2 * random.random((positions, 1))
    logits = -ndtri(np.cumsum(random.exponential(size=(positions, k)), axis=1) / vocabulary) * spread
    log_probs = (logits - np.log(vocabulary) - spread**2 / 2).clip(max=0).astype(np.float32)
    in_top = random.random(positions) < 0.6
    label_log_probs = np.where(in_top, log_probs[:, 0], -random.exponential(8, positions)).astype(np.float32)
    return TopK(token_ids, log_probs, label_log_probs, np.array([0, positions], np.int64))


def shard_of(top_k: TopK, row_splits, inputs: bool = False) -> Shard:
    row_splits = np.asarray(row_splits, np.int64)
    top_k = dataclasses.replace(top_k, row_splits=row_splits)
    dialogues = len(row_splits) - 1
    training = None
    if inputs:
        counts = np.diff(row_splits)
        positions = [np.arange(count, dtype=np.int32) + 3 for count in counts]
        splits = np.concatenate([[0], np.cumsum(counts + 5)]).astype(np.int64)
        ids = np.random.default_rng(1).zipf(1.3, int(splits[-1])).clip(0, 31_999).astype(np.int32)
        training = TrainingInputs(ids, splits, np.concatenate(positions) if positions else np.empty(0, np.int32))
    return Shard(
        top_k,
        [f"{number:032x}" for number in range(dialogues)],
        [("code", "prose")[number % 2] for number in range(dialogues)],
        np.arange(dialogues, dtype=np.int64) * 7,
        ShardMetadata("model", "dataset", top_k.top_k),
        training,
    )


def assert_same(found: Shard, expected: Shard) -> None:
    np.testing.assert_array_equal(found.top_k.token_ids, expected.top_k.token_ids)
    np.testing.assert_array_equal(found.top_k.log_probs, expected.top_k.log_probs.astype(np.float16))
    np.testing.assert_array_equal(found.top_k.label_log_probs, expected.top_k.label_log_probs)
    np.testing.assert_array_equal(found.top_k.row_splits, expected.top_k.row_splits)
    for name in ("token_ids", "log_probs", "label_log_probs", "row_splits"):
        assert getattr(found.top_k, name).dtype == getattr(expected.top_k, name).dtype, name
    assert found.dialogue_ids == expected.dialogue_ids and found.domains == expected.domains
    np.testing.assert_array_equal(found.response_bytes, expected.response_bytes)
    assert found.metadata == expected.metadata
    assert (found.inputs is None) == (expected.inputs is None)
    if found.inputs is not None:
        for field in dataclasses.fields(TrainingInputs):
            np.testing.assert_array_equal(getattr(found.inputs, field.name), getattr(expected.inputs, field.name))


@pytest.mark.parametrize("inputs", [False, True])
def test_reads_what_was_written(tmp_path, inputs):
    shard = shard_of(distributions(200, 3000), [0, 0, 80, 80, 199, 200, 200], inputs)
    write_shard(tmp_path / "shard.parquet", shard)
    assert_same(read_shard(tmp_path / "shard.parquet"), shard)


def test_equal_shards_have_equal_bytes_and_no_partial_file_is_left(tmp_path):
    shard = shard_of(distributions(50, 500), [0, 20, 50], inputs=True)
    write_shard(tmp_path / "a.parquet", shard)
    write_shard(tmp_path / "b.parquet", shard)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("row_splits", [[0], [0, 0], [0, 0, 0]])
@pytest.mark.parametrize("inputs", [False, True])
def test_shards_without_positions(tmp_path, row_splits, inputs):
    shard = shard_of(distributions(0, 500), row_splits, inputs)
    write_shard(tmp_path / "shard.parquet", shard)
    assert_same(read_shard(tmp_path / "shard.parquet"), shard)


def test_large_shards_are_cut_into_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_columns, "ROW_GROUP_ENTRIES", 300)
    shard = shard_of(distributions(100, 500), [0, 10, 20, 30, 75, 75, 90, 100], inputs=True)
    write_shard(tmp_path / "shard.parquet", shard)
    assert pq.read_metadata(tmp_path / "shard.parquet").num_row_groups == 3
    assert_same(read_shard(tmp_path / "shard.parquet"), shard)


def test_padding_extremes_and_arrays_that_can_be_written(tmp_path):
    log_probs = np.array([[0.0, -1e-9, -65504.0], [-1e-3, -1e6, -np.inf]], np.float32)
    top_k = TopK(
        np.array([[1, 2, 151_999], [7, 0, -1]], np.int32),
        log_probs,
        np.array([-1e-9, -1e6], np.float32),
        np.array([0, 2], np.int64),
    )
    write_shard(tmp_path / "shard.parquet", shard_of(top_k, [0, 2]))
    found = read_shard(tmp_path / "shard.parquet").top_k
    # An entry that has a token stays finite; only padding is infinite.
    expected = [[0.0, np.float16(-1e-9), -65504.0], [np.float16(-1e-3), -65504.0, -np.inf]]
    np.testing.assert_array_equal(found.log_probs, np.array(expected, np.float32))
    np.testing.assert_array_equal(found.label_log_probs, top_k.label_log_probs)
    np.testing.assert_array_equal(found.token_ids, top_k.token_ids)
    assert found.token_ids.flags.writeable and found.log_probs.flags.writeable


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), max_size=6),
    k=st.integers(1, 5),
    bits=st.integers(0, 2**32 - 1),
    inputs=st.booleans(),
)
def test_every_float16_and_every_id_comes_back(tmp_path_factory, counts, k, bits, inputs):
    random = np.random.default_rng(bits)
    positions = sum(counts)
    halves = random.integers(0, 0x7C01, (positions, k)).astype(np.uint16) | 0x8000
    top_k = TopK(
        random.integers(-1, 2**31 - 1, (positions, k), dtype=np.int32),
        np.sort(halves.view(np.float16), axis=1)[:, ::-1].astype(np.float32),
        -random.exponential(5, positions).astype(np.float32),
        np.array([0, positions], np.int64),
    )
    shard = shard_of(top_k, np.concatenate([[0], np.cumsum(counts)]), inputs)
    path = tmp_path_factory.mktemp("shards") / "shard.parquet"
    write_shard(path, shard)
    assert_same(read_shard(path), shard)


def test_datasets_reads_the_columns_as_they_are_meant(tmp_path):
    shard = shard_of(distributions(60, 500), [0, 0, 25, 60])
    path = tmp_path / "shard.parquet"
    write_shard(path, shard)
    table = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["dialogue_id"][:] == shard.dialogue_ids and table["domain"][:] == shard.domains
    assert table["response_bytes"][:] == shard.response_bytes.tolist()
    row = table[2]
    k = len(row["token_ids"]) // len(row["label_log_probs"])
    np.testing.assert_array_equal(np.reshape(row["token_ids"], (-1, k)), shard.top_k.dialogue(2).token_ids)
    np.testing.assert_array_equal(
        np.reshape(row["log_probs"], (-1, k)).astype(np.float32), shard.top_k.dialogue(2).log_probs.astype(np.float16)
    )


@pytest.mark.parametrize("reader", ["duckdb", "polars"])
def test_other_readers(tmp_path, reader):
    module = pytest.importorskip(reader, reason=f"{reader} is not installed")
    shard = shard_of(distributions(60, 500), [0, 0, 25, 60], inputs=True)
    path = tmp_path / "shard.parquet"
    write_shard(path, shard)
    if reader == "duckdb":
        rows = module.sql(f"select token_ids, log_probs, response_positions from '{path}'").fetchall()
    else:
        rows = module.read_parquet(path).select("token_ids", "log_probs", "response_positions").rows()
    expected = shard.top_k.dialogue(1)
    assert list(rows[1][0]) == expected.token_ids.ravel().tolist()
    assert list(rows[1][1]) == expected.log_probs.astype(np.float16).astype(np.float32).ravel().tolist()
    assert len(rows[2][2]) == 35 and list(rows[0][0]) == []


@pytest.mark.parametrize(("vocabulary", "zipf"), [(32_000, True), (152_000, True), (152_000, False)])
def test_bytes_per_position_keep_the_budget_also_where_nothing_is_predictable(tmp_path, vocabulary, zipf):
    positions = 20_000
    shard = shard_of(distributions(positions, vocabulary, zipf=zipf), np.arange(0, positions + 1, 100))
    path = tmp_path / "shard.parquet"
    write_shard(path, shard)
    assert path.stat().st_size / positions <= BYTES_BUDGET


def test_every_changed_byte_and_every_cut_is_found(tmp_path):
    path = tmp_path / "shard.parquet"
    shard = shard_of(distributions(120, 500), [0, 60, 120], inputs=True)
    write_shard(path, shard)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.choice(len(whole), 120, replace=False):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(broken))
        try:
            found = read_shard(path)
        except ShardError:
            continue
        # Not every byte of the footer carries meaning, and a digest in it is guarded by the manifest's checksum alone.
        assert_same(dataclasses.replace(found, metadata=shard.metadata), shard)
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"shard\.parquet cannot be read"):
            read_shard(path)


def test_missing_file(tmp_path):
    with pytest.raises(ShardError, match=r"none\.parquet cannot be read"):
        read_shard(tmp_path / "none.parquet")


def test_a_file_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ShardError, match="no distribution shard"):
        read_shard(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this program reads 1"),
        ({}, "unreadable metadata"),
        ({"schema_version": 1, "unknown": 3}, "unreadable metadata"),
        ({"schema_version": 1, "model_digest": "m", "dataset_digest": "d", "top_k": 3}, "has columns"),
    ],
)
def test_another_version_or_other_columns_are_refused(tmp_path, metadata, message):
    table = pa.table({"a": [1]}).replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
    pq.write_table(table, tmp_path / "shard.parquet")
    with pytest.raises(ShardError, match=message):
        read_shard(tmp_path / "shard.parquet")


def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path):
    top_k = distributions(10, 100)
    shard = shard_of(top_k, [0, 4, 10])
    with pytest.raises(ShardError, match="2 dialogues needs as many"):
        dataclasses.replace(shard, domains=["one"])
    with pytest.raises(ShardError, match="top_k = 3"):
        dataclasses.replace(shard, metadata=ShardMetadata("m", "d", 3))
    with pytest.raises(ShardError, match="Training inputs must cover 2 dialogues and 10 positions"):
        empty = np.empty(0, np.int32)
        dataclasses.replace(shard, inputs=TrainingInputs(empty, np.zeros(3, np.int64), empty))
    with pytest.raises(ShardError, match="cannot be written"):
        write_shard(tmp_path / "no" / "folder.parquet", shard)


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ShardError, match="No space left on device"):
        write_shard(tmp_path / "shard.parquet", shard_of(distributions(10, 100), [0, 10]))
    assert list(tmp_path.iterdir()) == []


def test_estimate_is_within_15_percent_of_a_real_models_shard(tmp_path, stories_folder, shared_folder):
    model = AutoModelForCausalLM.from_pretrained(stories_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories_folder)
    rows = json.loads((shared_folder / "data" / "gpteacher" / "roleplay-simple-instruct.json").read_text())[:60]
    encoded = []
    for number, row in enumerate(rows):
        ids = np.array(tokenizer(row["response"], add_special_tokens=False).input_ids[:250], np.int32)
        encoded.append(
            SimpleNamespace(dialogue_id=str(number), input_ids=ids, response_positions=np.arange(len(ids) - 1))
        )
    config = ExtractionConfig()
    device = torch.device("cpu")
    top_k, _ = extract_shard(model, tokenizer, encoded, config, model_name="stories", device=device)
    path = tmp_path / "shard.parquet"
    write_shard(path, shard_of(top_k, top_k.row_splits))
    measured = path.stat().st_size / top_k.positions
    assert config.bytes_per_position(model.config.vocab_size) == pytest.approx(measured, rel=0.15)


def test_estimate_grows_with_entries_and_vocabulary():
    small = ExtractionConfig(top_k=10).bytes_per_position(32_000)
    assert small < ExtractionConfig(top_k=10).bytes_per_position(152_000) <= BYTES_BUDGET
    assert ExtractionConfig(top_k=20).bytes_per_position(32_000) > 1.5 * small
