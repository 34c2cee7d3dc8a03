"""Data files to shards of training and held-out dialogues, in bounded memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues.formats import parse_row
from fusion_core.dialogues.held_out_split import Part, choose, split
from fusion_core.dialogues.resolution import ResolvedFile
from fusion_core.dialogues.rows import DataRow, read_rows
from fusion_core.dialogues.shards import SCHEMA, ShardWriter, to_table
from fusion_core.dialogues.turns import Dialogue, MalformedRowError, opening_id
from fusion_core.errors import DialogueError

BATCH_DIALOGUES = 1024
QUARANTINED_CHARACTERS = 2000
OUTPUT_NAMES = frozenset({"train", "held_out", "quarantine.jsonl"})


@dataclass(frozen=True)
class PreparationReport:
    """What became of every row.

    Parameters
    ----------
    rows : int
        Rows read; the sum of all counts below but ``unanswered``.
    quarantined : int
        Malformed rows, written to ``quarantine.jsonl``.
    quarantine_reasons : dict of str to int
        How many rows had each kind of fault, most frequent first.
    duplicates : int
        Rows with the same turns as an earlier one.
    not_chosen : int
        Rows beyond the ``limit`` of their file.
    unanswered : int
        Dialogues whose last user turn had no answer and was dropped.
    train, held_out, set_aside : dict of str to int
        Dialogues of each domain, domains in order of first appearance; ``set_aside`` are those beyond
        ``held_out_limit``, neither trained on nor scored.
    train_shards, held_out_shards : int
    """

    rows: int
    quarantined: int
    quarantine_reasons: dict[str, int]
    duplicates: int
    not_chosen: int
    unanswered: int
    train: dict[str, int]
    held_out: dict[str, int]
    set_aside: dict[str, int]
    train_shards: int
    held_out_shards: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self)


def read_dialogues(file: DialogueFile, path: Path) -> Iterator[tuple[DataRow, Dialogue | MalformedRowError, bool]]:
    """Stream a data file's rows with the dialogue each holds, or why it holds none.

    Yields
    ------
    DataRow
    Dialogue or MalformedRowError
    bool
        Whether an unanswered last user turn was dropped.

    Raises
    ------
    DialogueError
        If the file as a whole cannot be read.
    """
    for row in read_rows(path):
        if isinstance(row.value, MalformedRowError):
            yield row, row.value, False
            continue
        try:
            dialogue, unanswered = parse_row(row.value, file)
        except MalformedRowError as error:
            yield row, error, False
        else:
            yield row, dialogue, unanswered


def prepare_dialogues(
    files: Sequence[ResolvedFile | tuple[DialogueFile, Path]], config: DialoguesConfig, output: Path
) -> PreparationReport:
    """Read data files once and write ``train/``, ``held_out/`` and ``quarantine.jsonl`` into a folder.

    Dialogues keep the order of the files and of their rows; equal ones are kept once, in the domain of the first.
    Memory grows by about 150 bytes a dialogue, whatever its length. The folder appears whole or not at all.

    Parameters
    ----------
    files : sequence of ResolvedFile or (DialogueFile, Path)
        Each entry of the recipe with where its contents lie. The ``limit`` of an entry counts over all its paths.
    config : DialoguesConfig
    output : Path
        New, empty, or with the result of an earlier preparation, which is replaced.

    Raises
    ------
    DialogueError
        If a file cannot be read, a file's rows are all malformed, more than ``max_quarantined`` of all rows are, or
        nothing is left to train on or to score.
    """
    _check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        whole = workplace / "whole"
        whole.mkdir(mode=0o755)
        spool = _read_all(files, workplace / "dialogues.parquet", whole / "quarantine.jsonl")
        _check_quarantine(spool, config.max_quarantined)
        report = _write_parts(spool, workplace / "dialogues.parquet", config, whole)
        _publish(whole, output)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return report


@dataclass
class _Spool:
    """What is kept of the rows while they wait, in input order, for their part to be decided."""

    ids: bytearray = field(default_factory=bytearray)
    openings: bytearray = field(default_factory=bytearray)
    domains: array[int] = field(default_factory=lambda: array("i"))
    files: array[int] = field(default_factory=lambda: array("i"))
    domain_names: dict[str, int] = field(default_factory=dict)
    limits: list[int | None] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    unanswered: int = 0
    file_rows: list[tuple[Path, int, int, str]] = field(default_factory=list)

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())


def _read_all(
    files: Sequence[ResolvedFile | tuple[DialogueFile, Path]], spool_path: Path, quarantine_path: Path
) -> _Spool:
    spool = _Spool()
    with pq.ParquetWriter(spool_path, SCHEMA, compression="lz4") as writer, quarantine_path.open("w") as quarantine:
        for entry in files:
            file, paths = (entry.file, entry.paths) if isinstance(entry, ResolvedFile) else (entry[0], (entry[1],))
            spool.limits.append(file.limit)
            for path in paths:
                _read_file(file, path, spool, writer, quarantine)
    return spool


def _read_file(file: DialogueFile, path: Path, spool: _Spool, writer: pq.ParquetWriter, quarantine: IO[str]) -> None:
    waiting: list[Dialogue] = []
    rows, faults, first_fault = 0, 0, ""
    for row, outcome, unanswered in read_dialogues(file, path):
        rows += 1
        if isinstance(outcome, MalformedRowError):
            faults += 1
            first_fault = first_fault or f"{path} row {row.number}: {outcome.reason}"
            spool.reasons[outcome.kind] += 1
            quarantine.write(_quarantine_line(path, row, outcome))
            continue
        spool.unanswered += unanswered
        spool.ids += bytes.fromhex(outcome.id)
        spool.openings += bytes.fromhex(opening_id(outcome.turns))
        spool.domains.append(spool.domain_names.setdefault(outcome.domain, len(spool.domain_names)))
        spool.files.append(len(spool.limits) - 1)
        waiting.append(outcome)
        if len(waiting) == BATCH_DIALOGUES:
            writer.write_table(to_table(waiting))
            waiting = []
    if waiting:
        writer.write_table(to_table(waiting))
    spool.rows += rows
    spool.file_rows.append((path, rows, faults, first_fault))


def _quarantine_line(path: Path, row: DataRow, error: MalformedRowError) -> str:
    content = row.text or json.dumps(row.value, default=str)
    line = {"file": path.name, "row": row.number, "reason": error.reason, "content": content[:QUARANTINED_CHARACTERS]}
    return json.dumps(line) + "\n"


def _check_quarantine(spool: _Spool, max_quarantined: float) -> None:
    for path, rows, faults, first_fault in spool.file_rows:
        if faults == rows:
            raise DialogueError(
                f"Data file {path}: all of its {rows} rows are malformed, the first being {first_fault}; correct the "
                "file or its `format`."
            )
    if spool.quarantined > max_quarantined * spool.rows:
        first_fault = next(fault for *_, fault in spool.file_rows if fault)
        kinds = ", ".join(f"{kind} ({count})" for kind, count in spool.reasons.most_common(3))
        raise DialogueError(
            f"{spool.quarantined} of {spool.rows} rows ({spool.quarantined / spool.rows:.1%}) are malformed, more than "
            f"`max_quarantined` ({max_quarantined:.1%}) allows; the first is {first_fault}; in all: {kinds}; correct "
            "the data or its `format`, or raise `max_quarantined`."
        )


def _write_parts(spool: _Spool, spool_path: Path, config: DialoguesConfig, whole: Path) -> PreparationReport:
    ids, openings = (np.frombuffer(bytes(part), np.uint8).reshape(-1, 16) for part in (spool.ids, spool.openings))
    domains = np.array(spool.domains, np.int32)
    parts = choose(ids, np.array(spool.files, np.int32), spool.limits)
    kept = np.flatnonzero(parts == Part.TRAIN)
    parts[kept] = split(ids[kept], openings[kept], domains[kept], config.held_out_share, config.held_out_limit)
    for part, remedy in ((Part.TRAIN, "to train on"), (Part.HELD_OUT, "to hold out for scoring")):
        if not np.any(parts == part):
            raise DialogueError(
                f"The data files hold {len(kept)} distinct dialogues, which leaves none {remedy}; give more dialogues, "
                "at least two with different openings in a domain."
            )
    writers = {
        Part.TRAIN: ShardWriter(whole / "train", config.shard_dialogues),
        Part.HELD_OUT: ShardWriter(whole / "held_out", config.shard_dialogues),
    }
    start = 0
    # Read ahead, the whole file would stay in memory.
    with pq.ParquetFile(spool_path, pre_buffer=False) as spooled:
        for batch in spooled.iter_batches(batch_size=BATCH_DIALOGUES):
            table = pa.Table.from_batches([batch])
            for part, writer in writers.items():
                writer.write(table.filter(pa.array(parts[start : start + len(table)] == part)))
            start += len(table)
    for writer in writers.values():
        writer.close()

    def by_domain(part: Part) -> dict[str, int]:
        counts = np.bincount(domains[parts == part], minlength=len(spool.domain_names))
        return {name: int(counts[index]) for name, index in spool.domain_names.items()}

    return PreparationReport(
        rows=spool.rows,
        quarantined=spool.quarantined,
        quarantine_reasons=dict(spool.reasons.most_common()),
        duplicates=int(np.count_nonzero(parts == Part.DUPLICATE)),
        not_chosen=int(np.count_nonzero(parts == Part.NOT_CHOSEN)),
        unanswered=spool.unanswered,
        train=by_domain(Part.TRAIN),
        held_out=by_domain(Part.HELD_OUT),
        set_aside=by_domain(Part.SET_ASIDE),
        train_shards=writers[Part.TRAIN].shards,
        held_out_shards=writers[Part.HELD_OUT].shards,
    )


def _check_output(output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir() or not {path.name for path in output.iterdir()} <= OUTPUT_NAMES:
        raise DialogueError(
            f"The output {output} exists and holds something else than prepared dialogues; give a new or empty folder."
        )


def _publish(whole: Path, output: Path) -> None:
    if output.exists():
        # Set the earlier result aside first: a folder can only be renamed onto an empty one.
        output.rename(whole.parent / "earlier")
    whole.rename(output)
