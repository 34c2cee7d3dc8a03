"""Rows of a data file, streamed: JSON, JSON lines and Parquet."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow.parquet as pq

from fusion_core.dialogues.formats import recognise_format
from fusion_core.dialogues.turns import MalformedRowError
from fusion_core.errors import DialogueError, first_line

PARQUET_BATCH_ROWS = 1024
LONGEST_LINE_BYTES = 1 << 28

FileKind = Literal["json", "jsonl", "parquet"]
SUFFIXES: dict[str, FileKind] = {
    ".json": "json",
    ".json.gz": "json",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
}


class DataRow(NamedTuple):
    """One row of a data file.

    Parameters
    ----------
    number : int
        Counted from 1; in JSONL the line's number.
    value : JSON value or MalformedRowError
        What the row holds, or why it cannot be read.
    text : str
        What stands there when it cannot be read.
    """

    number: int
    value: Any
    text: str = ""


def file_kind(path: Path) -> FileKind:
    """Tell from a file's ending how it is read.

    Raises
    ------
    DialogueError
        If the ending is none of the known ones.
    """
    name = path.name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise DialogueError(
        f"Data file {path}: its ending says no known format, expected one of {', '.join(SUFFIXES)}; convert or rename "
        "the file."
    )


def read_rows(path: Path) -> Iterator[DataRow]:
    """Stream the rows of a data file.

    JSONL (also .gz) and Parquet are read piece by piece. A JSON document is read whole, so it needs a few times its
    size in memory; its rows are its list, or the one list among its fields, or itself when it is a dialogue. A file
    called .json that holds JSON lines is read as such.

    Raises
    ------
    DialogueError
        If the file is missing, empty, not UTF-8, not what its ending says, or broken as a whole.
    """
    kind = file_kind(path)
    if kind == "parquet":
        rows = _read_parquet(path)
    elif kind == "jsonl" or _holds_lines(path):
        rows = _read_lines(path)
    else:
        rows = _read_document(path)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DialogueError(f"Data file {path} holds no rows; give a file with dialogues or remove it from `files`.")


def open_binary(path: Path) -> BinaryIO:
    """Open a data file; a missing one is a DialogueError."""
    try:
        if path.exists() and not path.is_file():
            # A pipe would be waited for, and data are read more than once.
            raise IsADirectoryError(errno.EISDIR, "it is a folder or a pipe, not a file")
        return path.open("rb")
    except OSError as error:
        raise DialogueError(
            f"Data file {path} cannot be opened ({error.strerror}); correct its `path` in the recipe's `files`."
        ) from error


@contextmanager
def _open_text(path: Path) -> Iterator[BinaryIO]:
    with open_binary(path) as content:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=content) as inflated:
                yield cast(BinaryIO, inflated)
        else:
            yield content


def _read_lines(path: Path) -> Iterator[DataRow]:
    with _open_text(path) as content:
        number = 0
        while True:
            number += 1
            line = _read_line(path, content, number)
            if not line:
                return
            text = _decode(path, line, number)
            if number == 1 and text.strip() in ("[", "[{"):
                raise DialogueError(
                    f"Data file {path} holds one JSON list, not one object a line; rename it to end "
                    "in .json or .json.gz."
                )
            if text.strip():
                yield _parse_line(number, text)


def _holds_lines(path: Path) -> bool:
    """Tell whether the first line with text is a whole JSON object and is not the last, which no document has."""
    with _open_text(path) as content:
        found = False
        while line := _guarded_read(path, lambda: content.readline(LONGEST_LINE_BYTES)):
            if not line.strip():
                continue
            if found:
                return True
            if not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
                return False
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                return False
            found = True
    return False


def _read_document(path: Path) -> Iterator[DataRow]:
    with _open_text(path) as content:
        text = _decode(path, _guarded_read(path, content.read), None)
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DialogueError(
            f"Data file {path} is broken JSON at line {error.lineno}, column {error.colno} ({error.msg}); repair it, "
            "or write one object a line into a .jsonl file, where one broken line costs one dialogue."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DialogueError(f"Data file {path} cannot be read as JSON ({error}); repair it.") from error
    for number, row in enumerate(_rows_of_document(path, document), start=1):
        yield DataRow(number, row)


def _rows_of_document(path: Path, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        try:
            recognise_format(document)
            return [document]
        except MalformedRowError:
            lists = [value for value in document.values() if isinstance(value, list)]
            if len(lists) == 1:
                return lists[0]
    raise DialogueError(
        f"Data file {path}: expected a JSON list of dialogues, or an object with one such list, found "
        f"{type(document).__name__}; write the dialogues as one list."
    )


def _read_parquet(path: Path) -> Iterator[DataRow]:
    number = 0
    with open_binary(path) as content:
        try:
            for batch in pq.ParquetFile(content, pre_buffer=False).iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield DataRow(number, row)
        except Exception as error:
            # A broken footer, or a date that Python has not, makes the reader fail in ways of every kind.
            raise DialogueError(
                f"Data file {path} cannot be read as Parquet after row {number} ({first_line(error)}); write it "
                "again, or name it by the format it has."
            ) from error


def _read_line(path: Path, content: BinaryIO, number: int) -> bytes:
    line = _guarded_read(path, lambda: content.readline(LONGEST_LINE_BYTES))
    if len(line) == LONGEST_LINE_BYTES:
        # A few kilobytes of a compressed file can stand for a line that fits no memory.
        raise DialogueError(
            f"Data file {path}: line {number} has {LONGEST_LINE_BYTES >> 20} MiB or more; write one dialogue a "
            "line, or leave it out."
        )
    return line


def _parse_line(number: int, text: str) -> DataRow:
    try:
        return DataRow(number, json.loads(text))
    except json.JSONDecodeError as error:
        reason = f"it is broken JSON at column {error.colno} ({error.msg})"
    except (ValueError, RecursionError) as error:
        reason = f"it cannot be read as JSON ({first_line(error)})"
    return DataRow(number, MalformedRowError("broken JSON", reason), text)


def _decode(path: Path, content: bytes, row: int | None) -> str:
    try:
        return content.decode("utf-8-sig" if row in (None, 1) else "utf-8")
    except UnicodeDecodeError as error:
        where = f"row {row}" if row is not None else "it"
        raise DialogueError(
            f"Data file {path}: {where} is not UTF-8 at byte {error.start} (0x{content[error.start]:02x}); convert the "
            "file to UTF-8."
        ) from error


def _guarded_read(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError) as error:
        raise DialogueError(
            f"Data file {path} cannot be read to its end ({first_line(error)}); it is cut short or not what its "
            "ending says, so copy or compress it again."
        ) from error
    except Exception as error:  # zlib.error is no OSError
        raise DialogueError(
            f"Data file {path} cannot be decompressed ({first_line(error)}); compress it again."
        ) from error
