"""Data files of dialogues, of every format and kind: rows are dialogues or quarantined, files refused as a whole."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues import Dialogue, load_dialogues, prepare_dialogues
from fusion_core.dialogues.preparation import read_dialogues
from fusion_core.dialogues.turns import check_turns, dialogue_id
from tests.fuzz.fuzzing import counts, fuzz, fuzz_values, json_values, mutated_bytes, mutated_value

FORMATS: dict[str, Callable[[int], dict[str, Any]]] = {
    "messages": lambda n: {
        "domain": "code",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Question {n}?"},
            {"role": "assistant", "content": f"Answer {n}."},
        ],
    },
    "sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"Question {n}?"}, {"from": "gpt", "value": f"Answer {n}."}]
    },
    "alpaca": lambda n: {
        "instruction": f"Do {n}.",
        "input": "With this.",
        "output": f"Done {n}.",
        "system": "Be kind.",
    },
    "question_answer": lambda n: {"question": f"What is {n}?", "answer": f"It is {n}."},
}
# Arrow's writer, not its reader, takes gigabytes for a few hundred more; the reader refuses what is deeper than 100.
DEEPEST_WRITTEN = 320
KINDS = ("json", "jsonl", "jsonl.gz", "parquet")


def rows_of(rng: random.Random, row_format: str) -> list[Any]:
    """Rows of a format, about one in three of them changed."""
    make = FORMATS[row_format]
    return [mutated_value(rng, make(n)) if rng.random() < 0.35 else make(n) for n in range(rng.choice((1, 3, 6)))]


def encoded(rng: random.Random, rows: list[Any], kind: str) -> bytes:
    """Write rows as a file of a kind."""
    if kind == "parquet":
        return parquet_of(rng, rows)
    try:
        lines = [json.dumps(row) for row in rows]
    except RecursionError:
        lines = ["[" * 3000]
    text = f"[{', '.join(lines)}]" if kind == "json" else "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    return gzip.compress(content, 1) if kind.endswith("gz") else content


def depth(value: Any) -> int:
    """How many lists and mappings stand inside each other."""
    deepest, waiting = 0, [(value, 0)]
    while waiting:
        node, level = waiting.pop()
        deepest = max(deepest, level)
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(child, level + 1) for child in inner]
    return deepest


def parquet_of(rng: random.Random, rows: list[Any]) -> bytes:
    """Write rows as Parquet where Arrow has types for them, else something else that Parquet can hold."""
    buffer = io.BytesIO()
    try:
        if depth(rows) > DEEPEST_WRITTEN:
            raise ValueError("too deep to be written")
        pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), buffer)
    except (pa.ArrowException, OverflowError, TypeError, ValueError, RecursionError):
        buffer = io.BytesIO()
        table = pa.table(
            {
                "messages": pa.array([2**62, -(2**62)], pa.timestamp(rng.choice(("ms", "us", "ns")), tz="UTC")),
                "question": pa.array([b"\xff", None], pa.binary()),
                "answer": pa.array([{"a": 1}, None], pa.map_(pa.string(), pa.int64())),
            }
        )
        pq.write_table(table, buffer)
    return buffer.getvalue()


def check(row: object, outcome: object) -> None:
    """A row that was taken obeys the rules of dialogues."""
    if isinstance(outcome, Dialogue):
        turns, unanswered = check_turns(outcome.turns)
        assert turns == outcome.turns and not unanswered
        assert outcome.id == dialogue_id(turns) and outcome.domain.isprintable()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row_format", FORMATS)
@counts
def test_files(count: int, row_format: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{kind}"

    def make(rng: random.Random) -> tuple[str, bytes]:
        content = encoded(rng, rows_of(rng, row_format), kind)
        # What a file says that it is, is what it is, or not.
        return rng.choice((row_format, "auto", "auto")), mutated_bytes(rng, content) if rng.random() < 0.5 else content

    def read(made: tuple[str, bytes]) -> None:
        chosen, content = made
        path.write_bytes(content)
        for row, outcome, _ in read_dialogues(DialogueFile(path=path, format=chosen), path):
            check(row, outcome)

    # The kinds share the number: all together are far more than each promises.
    fuzz(count if kind == "jsonl" else max(50, count // 4), make, read, tmp_path)


@counts
def test_prepared_whole_or_not_at_all(count: int, tmp_path: Path) -> None:
    path, output = tmp_path / "data.jsonl", tmp_path / "prepared"
    config = DialoguesConfig(files=(DialogueFile(path=path),), held_out_share=0.3, max_quarantined=0.1)

    def make(rng: random.Random) -> bytes:
        rows = [row for row_format in FORMATS for row in rows_of(rng, row_format)]
        return encoded(rng, rows, "jsonl")

    def read(content: bytes) -> None:
        path.write_bytes(content)
        report = prepare_dialogues([(config.files[0], path)], config, output)
        counted = sum(report.train.values()) + sum(report.held_out.values()) + sum(report.set_aside.values())
        assert counted + report.quarantined + report.duplicates + report.not_chosen == report.rows
        loaded = [
            one for part in ("train", "held_out") for file in (output / part).iterdir() for one in load_dialogues(file)
        ]
        assert len(loaded) == counted

    fuzz(count, make, read, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"data.jsonl", "prepared"}


@counts
def test_any_value_as_a_row(count: int, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"

    def read(value: Any) -> None:
        path.write_text(json.dumps(value), encoding="utf-8")
        for row, outcome, _ in read_dialogues(DialogueFile(path=path), path):
            check(row, outcome)

    fuzz_values(count, json_values, read, tmp_path)


def test_a_line_that_fits_no_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_core.dialogues import rows
    from fusion_core.errors import DialogueError

    monkeypatch.setattr(rows, "LONGEST_LINE_BYTES", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"question": "' + b"a" * (8 << 20) + b'", "answer": "b"}\n'))
    with pytest.raises(DialogueError, match=r"line 1 has 1 MiB or more"):
        list(read_dialogues(DialogueFile(path=path), path))
