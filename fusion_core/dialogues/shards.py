"""Dialogues to Parquet shards and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fusion_core.dialogues.turns import Dialogue, Role, Turn
from fusion_core.errors import ShardError, first_line

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("domain", pa.string()), ("turns", pa.list_(TURN))])


def to_table(dialogues: Sequence[Dialogue]) -> pa.Table:
    """Put dialogues into one Arrow table."""
    counts = [0]
    roles: list[str] = []
    contents: list[str] = []
    for dialogue in dialogues:
        roles += [turn.role for turn in dialogue.turns]
        contents += [turn.content for turn in dialogue.turns]
        counts.append(len(roles))
    turns = pa.StructArray.from_arrays(
        [pa.array(roles, pa.string()), pa.array(contents, pa.string())], ["role", "content"]
    )
    return pa.Table.from_arrays(
        [
            pa.array([dialogue.id for dialogue in dialogues], pa.string()),
            pa.array([dialogue.domain for dialogue in dialogues], pa.string()),
            pa.ListArray.from_arrays(pa.array(counts, pa.int32()), turns).cast(SCHEMA.field("turns").type),
        ],
        schema=SCHEMA,
    )


def load_dialogues(path: Path) -> list[Dialogue]:
    """Read one shard of prepared dialogues.

    Raises
    ------
    ShardError
        If the file is missing, is no Parquet file, or has other columns.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except Exception as error:
        # A broken footer makes the reader fail in ways of every kind, also in decoding names.
        raise ShardError(
            f"Dialogue shard {path} cannot be read ({first_line(error)}); prepare the dialogues again."
        ) from error
    if table.schema.names != SCHEMA.names:
        raise ShardError(
            f"Dialogue shard {path} has the columns {', '.join(table.schema.names)}, expected "
            f"{', '.join(SCHEMA.names)}; prepare the dialogues again."
        )
    try:
        if table.schema.types != SCHEMA.types or not _is_whole(table):
            raise ShardError(
                f"Dialogue shard {path} holds other types than a dialogue's, or a row without a value; prepare the "
                "dialogues again."
            )
        columns = [table[name].to_pylist() for name in SCHEMA.names]
    except UnicodeDecodeError as error:
        # Arrow takes a text's bytes as they stand.
        raise ShardError(
            f"Dialogue shard {path} holds a text that is not UTF-8 ({first_line(error)}); prepare the dialogues again."
        ) from error
    return [
        Dialogue(row_id, domain, tuple(Turn(turn["role"], turn["content"]) for turn in turns))
        for row_id, domain, turns in zip(*columns, strict=True)
    ]


def _is_whole(table: pa.Table) -> bool:
    """Say whether every value is there, and every role one that there is."""
    turns = pa.concat_arrays([chunk.flatten() for chunk in table["turns"].chunks] or [pa.array([], TURN)])
    roles = set(pc.unique(turns.field("role")).to_pylist())
    missing = sum(column.null_count for column in table.columns) + turns.null_count + turns.field("content").null_count
    return not missing and roles <= set(get_args(Role))


class ShardWriter:
    """Writes tables as consecutive shards of a fixed number of dialogues, holding one shard in memory.

    Parameters
    ----------
    folder : Path
        Made here; gets ``dialogues-00000.parquet`` and so on.
    shard_dialogues : int
        Dialogues in every shard but the last.
    """

    def __init__(self, folder: Path, shard_dialogues: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.shard_dialogues = shard_dialogues
        self.shards = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(self, table: pa.Table) -> None:
        """Add dialogues, writing every shard that is full."""
        while self._waiting_rows + len(table) >= self.shard_dialogues:
            room = self.shard_dialogues - self._waiting_rows
            self._waiting.append(table.slice(0, room))
            table = table.slice(room)
            self._flush()
        if len(table):
            self._waiting.append(table)
            self._waiting_rows += len(table)

    def close(self) -> None:
        """Write what is left as the last shard."""
        if self._waiting:
            self._flush()

    def _flush(self) -> None:
        # One chunk and one row group, so that the bytes do not depend on how the rows arrived.
        shard = pa.concat_tables(self._waiting).combine_chunks()
        path = self.folder / f"dialogues-{self.shards:05d}.parquet"
        pq.write_table(shard, path, compression="zstd", row_group_size=max(len(shard), 1))
        self.shards += 1
        self._waiting, self._waiting_rows = [], 0
