"""How flat arrays become Parquet columns, small without a code of their own.

BYTE_STREAM_SPLIT puts the bytes of one significance side by side, and zstd's entropy coder then spends on each what it
carries: the upper bytes of token ids little, of a float32 that holds a float16 only sign, exponent and ten bits of
mantissa. So log-probabilities stay numbers that every reader knows for about one byte a position more than as float16,
which DuckDB cannot read in this encoding. A float32 with all its bits, as the label's, costs nearly four bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

SPLIT = "BYTE_STREAM_SPLIT"
# Positions of one response follow each other, so their differences are ones.
ENCODINGS = {
    "token_ids": SPLIT,
    "log_probs": SPLIT,
    "label_log_probs": SPLIT,
    "input_ids": SPLIT,
    "response_positions": "DELTA_BINARY_PACKED",
}
# Entries in one row group, which bounds what a reader that streams must hold.
ROW_GROUP_ENTRIES = 1 << 26
# A float16 cannot hold less; a finite log-probability below it must not become the -inf of a padding entry.
SMALLEST_LOG_PROB = float(np.finfo(np.float16).min)


def round_log_probs(log_probs: np.ndarray) -> np.ndarray:
    """Round float32 log-probabilities to what a shard keeps: float16 values in float32, finite ones staying finite."""
    bounded = np.where(np.isfinite(log_probs), np.maximum(log_probs, SMALLEST_LOG_PROB), log_probs)
    return bounded.astype(np.float16).astype(np.float32)


def list_column(values: np.ndarray, splits: np.ndarray, dtype: Any) -> pa.Array:
    """Cut a flat array (or the rows of a matrix) into one list per dialogue at ``splits`` [D + 1]."""
    flat = pa.array(np.ascontiguousarray(values, dtype=dtype).ravel())
    return pa.LargeListArray.from_arrays(pa.array(np.asarray(splits, dtype=np.int64)), flat)


def flat_values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a list column, one dialogue after the other, and the int64 [D + 1] splits among them."""
    # Concatenation copies also a single chunk: the arrays outlive the table and are writable, as torch expects.
    values = [chunk.flatten().to_numpy() for chunk in column.chunks]
    lengths = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    flat = np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *values])
    return flat, np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64)


def row_groups(row_splits: np.ndarray, top_k: int) -> Iterator[tuple[int, int]]:
    """Cut dialogues into ranges of at most 2^26 entries, or of one dialogue; one empty range if there are none."""
    entries = np.asarray(row_splits) * top_k
    dialogues, start = len(entries) - 1, 0
    while True:
        stop = int(np.searchsorted(entries, entries[start] + ROW_GROUP_ENTRIES, side="right")) - 1
        stop = min(max(stop, start + 1), dialogues)
        yield start, stop
        if stop >= dialogues:
            return
        start = stop


def distribution_schema(with_inputs: bool) -> dict[str, pa.DataType]:
    """Columns and types of a shard, of a fused one with the encoded dialogues."""
    columns = {
        "dialogue_id": pa.string(),
        "domain": pa.string(),
        "response_bytes": pa.int64(),
        "token_ids": pa.large_list(pa.int32()),
        "log_probs": pa.large_list(pa.float32()),
        "label_log_probs": pa.large_list(pa.float32()),
    }
    if with_inputs:
        columns |= {"input_ids": pa.large_list(pa.int32()), "response_positions": pa.large_list(pa.int32())}
    return columns


def plain_schema(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Columns and types of a file, whatever its writer calls the elements of lists."""
    return {field.name: _plain_type(field.type) for field in schema}


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(kind.value_type)
    return kind
