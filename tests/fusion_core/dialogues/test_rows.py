"""Files of every kind give the same rows, and unusable ones are named with a remedy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_core.config import DialogueFile
from fusion_core.dialogues import (
    MalformedRowError,
    parse_row,
    read_dialogues,
)
from fusion_core.errors import DialogueError
from tests.fusion_core.dialogues.data_fixtures import (
    EXCHANGE,
    HELLO,
    prepare,
    turns,
    write_lines,
)


@pytest.mark.parametrize("name", ["d.json", "d.json.gz", "d.jsonl", "d.JSONL", "d.jsonl.gz", "d.parquet", "lines.json"])
def test_every_kind_of_file_gives_the_same_dialogues(name: str, tmp_path: Path) -> None:
    rows = [{"messages": EXCHANGE}, *(turns(("user", f"{n}?"), ("assistant", f"{n} 你好.")) for n in range(5))]
    path = tmp_path / name
    if name == "d.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".json" in name.lower() and "jsonl" not in name.lower() and name != "lines.json":
        text = json.dumps({"version": 1, "data": rows}, ensure_ascii=False, indent=1).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    else:
        write_lines(path, rows)
    found = list(read_dialogues(DialogueFile(path=path), path))
    assert [row.number for row, _, _ in found] == [1, 2, 3, 4, 5, 6]
    expected = [parse_row(row, DialogueFile(path=path))[0] for row in rows]
    assert [dialogue for _, dialogue, _ in found] == expected


def test_single_dialogue_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    single = tmp_path / "one.json"
    single.write_text(json.dumps({"messages": EXCHANGE}, indent=2), encoding="utf-8-sig")
    assert [dialogue.turns for _, dialogue, _ in read_dialogues(DialogueFile(path=single), single)] == [HELLO]
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": EXCHANGE}).encode() + b"\r\n\r\n{}\r\n")
    rows = list(read_dialogues(DialogueFile(path=marked), marked))
    assert [row.number for row, _, _ in rows] == [1, 3]
    assert rows[0][1].turns == HELLO and isinstance(rows[1][1], MalformedRowError)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "cannot be opened (No such file or directory)"),
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.json", b" \n", "holds no rows"),
        ("no_rows.json", b"[]", "holds no rows"),
        ("data.csv", b"a,b\n", "its ending says no known format"),
        ("latin.jsonl", '{"question": "café", "answer": "b"}\n'.encode("latin-1"), "row 1 is not UTF-8 at byte 17"),
        ("wide.jsonl", '{"question": "a", "answer": "b"}\n'.encode("utf-16"), "not UTF-8"),
        ("latin.json", '[{"question": "café"}]'.encode("latin-1"), "it is not UTF-8"),
        ("broken.json", b'[{"question": "a"},\n oops]', "broken JSON at line 2, column 2"),
        ("number.json", b"3", "found int"),
        ("two_lists.json", b'{"a": [], "b": []}', "found dict"),
        ("list.jsonl", b'[\n{"question": "a", "answer": "b"}\n]\n', "rename it to end in .json"),
        ("plain.jsonl.gz", b'{"question": "a"}\n', "cannot be read to its end"),
        ("short.jsonl.gz", gzip.compress(b'{"question": "a"}\n' * 999, mtime=0)[:-20], "cannot be read to its end"),
        ("corrupt.jsonl.gz", gzip.compress(b"a", mtime=0)[:10] + b"\xff" * 30, "cannot be decompressed"),
        ("text.parquet", b"hello", "cannot be read as Parquet"),
    ],
)
def test_unusable_file_is_named_with_a_remedy(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DialogueError) as caught:
        prepare(path, tmp_path / "out")
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if content is None else [name])
