"""Distribution shards: the next-token distributions of a few thousand dialogues in one Parquet file.

Legend: D dialogues, N response positions of all of them, K entries per position, T tokens of all dialogues.

One row per dialogue, plain columns that every Parquet reader shows as they are meant:

==================  =============  ==========================================================================
column              type           content
==================  =============  ==========================================================================
dialogue_id         string         content hash of the dialogue
domain              string         domain of the dialogue
response_bytes      int64          UTF-8 bytes of the responses that the positions cover
token_ids           list<int32>    K ids of the first position by descending probability, K of the next, ...
log_probs           list<float32>  their log-probabilities, in the same order, rounded to float16
label_log_probs     list<float32>  log p(gold next token), one per position
input_ids           list<int32>    the encoded dialogue (only in fused shards)
response_positions  list<int32>    index of each position in ``input_ids`` (only in fused shards)
==================  =============  ==========================================================================

A row in NumPy: ``k = len(row["token_ids"]) // len(row["label_log_probs"])`` and
``np.reshape(row["token_ids"], (-1, k))``.

How the columns are packed is in `fusion_core.shard_columns`; no reader needs to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion_core.distributions import TopK
from fusion_core.errors import ShardError, first_line
from fusion_core.shard_columns import (
    ENCODINGS,
    distribution_schema,
    flat_values,
    list_column,
    plain_schema,
    round_log_probs,
    row_groups,
)

SCHEMA_VERSION = 1
METADATA_KEY = b"fuseline"
COMPRESSION_LEVEL = 15
LARGEST_TOP_K = 1 << 20


@dataclass(frozen=True)
class ShardMetadata:
    """What a shard's distributions are, and of what.

    Parameters
    ----------
    model_digest : str
        Digest of the model that gave the distributions; of a fused shard: of everything that went into it.
    dataset_digest : str
        Digest of the dialogues.
    top_k : int
        Entries K per position.
    truncation : {"top_k", "sampled"}
        top_k: the K most probable tokens with their probabilities. sampled: K drawn tokens with unbiased estimates
        of their probabilities.
    schema_version : int
        Version of the columns.
    """

    model_digest: str
    dataset_digest: str
    top_k: int
    truncation: Literal["top_k", "sampled"] = "top_k"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class TrainingInputs:
    """Encoded dialogues beside their distributions, so that a fused shard is all that training reads.

    Parameters
    ----------
    input_ids : int32 [T]
        Token ids of all dialogues, one dialogue after the other.
    input_splits : int64 [D + 1]
        Tokens of dialogue d are ``input_splits[d]:input_splits[d + 1]``.
    response_positions : int32 [N]
        Index within its dialogue's tokens of each response position; its label is the token after it.
    """

    input_ids: np.ndarray
    input_splits: np.ndarray
    response_positions: np.ndarray


@dataclass(frozen=True)
class Shard:
    """The distributions of some dialogues, and which dialogues they are.

    Parameters
    ----------
    top_k : TopK
    dialogue_ids, domains : list of str
        One per dialogue.
    response_bytes : int64 [D]
    metadata : ShardMetadata
    inputs : TrainingInputs, optional
        Only fused shards have them.
    """

    top_k: TopK
    dialogue_ids: list[str]
    domains: list[str]
    response_bytes: np.ndarray
    metadata: ShardMetadata
    inputs: TrainingInputs | None = None

    def __post_init__(self) -> None:
        dialogues = self.top_k.dialogues
        lengths = (len(self.dialogue_ids), len(self.domains), len(self.response_bytes))
        if lengths != (dialogues,) * 3:
            raise ShardError(
                f"A shard of {dialogues} dialogues needs as many ids, domains and response sizes; found "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]}."
            )
        if self.metadata.top_k != self.top_k.top_k:
            raise ShardError(
                f"The shard's metadata say top_k = {self.metadata.top_k}, its arrays have {self.top_k.top_k} entries."
            )
        if self.inputs is not None and (
            len(self.inputs.input_splits) != dialogues + 1
            or len(self.inputs.input_ids) != int(self.inputs.input_splits[-1])
            or len(self.inputs.response_positions) != self.top_k.positions
        ):
            raise ShardError(
                f"Training inputs must cover {dialogues} dialogues and {self.top_k.positions} positions; found "
                f"{len(self.inputs.input_splits) - 1} dialogues, {len(self.inputs.response_positions)} positions."
            )


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard; equal shards give equal bytes, and a killed write leaves no file under ``path``.

    Parameters
    ----------
    path : Path
    shard : Shard
        ``log_probs`` are rounded to float16 here and nowhere else; everything else is kept exactly.

    Raises
    ------
    ShardError
        If the file cannot be written.
    """
    columns = _columns_of(shard)
    metadata = {METADATA_KEY: json.dumps(asdict(shard.metadata), sort_keys=True)}
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=metadata)
    table = pa.table(columns, schema=schema)
    partial = path.with_name(path.name + ".partial")
    try:
        with pq.ParquetWriter(
            partial,
            schema,
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=["domain"],
            column_encoding={f"{name}.list.element": code for name, code in ENCODINGS.items() if name in columns},
            write_statistics=["dialogue_id", "domain", "response_bytes"],
            write_page_checksum=True,
        ) as writer:
            for start, stop in row_groups(shard.top_k.row_splits, shard.top_k.top_k):
                writer.write_table(table.slice(start, stop - start), row_group_size=max(1, stop - start))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ShardError(f"The shard {path} cannot be written ({error}); is the disk full?") from error


def read_shard(path: Path) -> Shard:
    """Read a shard back; log-probabilities are the float16 values, in float32.

    Raises
    ------
    ShardError
        If the file is missing, broken, no shard, or of another schema version.
    """
    with errors_name(path):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = _read_metadata(path, file.schema_arrow)
            table = file.read(use_threads=False)
        try:
            return _shard_of(table, metadata)
        except ShardError as error:
            raise ShardError(f"The shard {path} is inconsistent: {error}") from error


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Turn whatever reading a broken file raises into a ShardError that names it."""
    try:
        yield
    except ShardError:
        raise
    except Exception as error:
        # A broken footer makes the reader fail in ways of every kind, also in decoding names.
        raise ShardError(
            f"The shard {path} cannot be read ({first_line(error)}); delete it so that it is computed again."
        ) from error


def _columns_of(shard: Shard) -> dict[str, pa.Array]:
    distributions = shard.top_k
    position_splits = np.asarray(distributions.row_splits, dtype=np.int64)
    entry_splits = position_splits * distributions.top_k
    columns: dict[str, pa.Array] = {
        "dialogue_id": pa.array(shard.dialogue_ids, pa.string()),
        "domain": pa.array(shard.domains, pa.string()),
        "response_bytes": pa.array(np.asarray(shard.response_bytes, dtype=np.int64)),
        "token_ids": list_column(distributions.token_ids, entry_splits, np.int32),
        "log_probs": list_column(round_log_probs(distributions.log_probs), entry_splits, np.float32),
        "label_log_probs": list_column(distributions.label_log_probs, position_splits, np.float32),
    }
    if shard.inputs is not None:
        columns["input_ids"] = list_column(shard.inputs.input_ids, shard.inputs.input_splits, np.int32)
        columns["response_positions"] = list_column(shard.inputs.response_positions, position_splits, np.int32)
    return columns


def _read_metadata(path: Path, schema: pa.Schema) -> ShardMetadata:
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ShardError(f"{path} is a Parquet file but no distribution shard; give a file that `extract` wrote.")
    try:
        stored = json.loads(text)
        version = stored.pop("schema_version")
        metadata = ShardMetadata(**stored) if version == SCHEMA_VERSION else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardError(f"The shard {path} has unreadable metadata ({error}); extract it again.") from error
    if metadata is not None and not _is_plausible(metadata):
        raise ShardError(f"The shard {path} has metadata of other types than a shard's; extract it again.")
    if metadata is None:
        raise ShardError(
            f"The shard {path} has schema version {version}, this program reads {SCHEMA_VERSION}; extract it again."
        )
    expected = [distribution_schema(with_inputs) for with_inputs in (False, True)]
    found = plain_schema(schema)
    if found not in expected:
        raise ShardError(
            f"The shard {path} has columns {sorted(found)}, expected {sorted(expected[0])} in their types; extract it "
            "again."
        )
    return metadata


def _is_plausible(metadata: ShardMetadata) -> bool:
    digests = isinstance(metadata.model_digest, str) and isinstance(metadata.dataset_digest, str)
    known = metadata.truncation in ("top_k", "sampled")
    return digests and known and type(metadata.top_k) is int and 1 <= metadata.top_k <= LARGEST_TOP_K


def _shard_of(table: pa.Table, metadata: ShardMetadata) -> Shard:
    entries, entry_splits = flat_values(table["token_ids"])
    log_probs, log_prob_splits = flat_values(table["log_probs"])
    label_log_probs, row_splits = flat_values(table["label_log_probs"])
    k = metadata.top_k
    if any(column.null_count for column in table.columns):
        raise ShardError("a row lacks a value.")
    if not (np.array_equal(entry_splits, row_splits * k) and np.array_equal(log_prob_splits, entry_splits)):
        raise ShardError(f"token_ids and log_probs must have {k} entries for each of the label_log_probs.")
    inputs = None
    if "input_ids" in table.column_names:
        input_ids, input_splits = flat_values(table["input_ids"])
        positions, position_splits = flat_values(table["response_positions"])
        if not np.array_equal(position_splits, row_splits):
            raise ShardError("response_positions and label_log_probs must be as many in each dialogue.")
        # The label is the token after a position.
        lengths = np.repeat(np.diff(input_splits), np.diff(row_splits))
        if len(positions) and (positions.min() < 0 or np.any(positions + 1 >= lengths)):
            raise ShardError("a response position lies outside its dialogue.")
        inputs = TrainingInputs(input_ids, input_splits, positions)
    return Shard(
        TopK(entries.reshape(-1, k), log_probs.reshape(-1, k), label_log_probs, row_splits),
        table["dialogue_id"].to_pylist(),
        table["domain"].to_pylist(),
        table["response_bytes"].to_numpy(),
        metadata,
        inputs,
    )
