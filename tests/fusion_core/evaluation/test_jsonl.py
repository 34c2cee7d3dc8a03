"""JSONL files of benchmarks: any text goes through, and a faulty line is named."""

from pathlib import Path

import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.jsonl import read_jsonl, write_jsonl


def test_separators_and_surrogates_go_through(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, [{"text": "one\u2028two\x85three\rfour"}, {"text": "\ud800"}])
    assert [row["text"] for row in read_jsonl(path)] == ["one\u2028two\x85three\rfour", "?"]


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n')
    assert read_jsonl(path, ("a",)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": 1', "5", "[1]", "{}"])
def test_a_faulty_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(EvaluationError, match="Line 2"):
        read_jsonl(path, ("a",))
