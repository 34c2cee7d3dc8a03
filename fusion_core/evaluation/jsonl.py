"""JSONL files of benchmarks: one object a line, with the faulty line named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fusion_core.errors import EvaluationError, first_line


def read_jsonl(path: Path, required: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read a JSONL file whose objects all have the ``required`` keys.

    Raises
    ------
    EvaluationError
        If the file cannot be read, or a line is no object or lacks a key; names file, line and key.
    """
    try:
        # Not splitlines(): an answer may hold separators such as U+2028, which JSON leaves as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read ({first_line(error)}); give a JSONL file.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"Line {number} of {path} is no JSON ({first_line(error)}); correct it.") from error
        if not isinstance(row, dict):
            raise EvaluationError(f"Line {number} of {path} is {type(row).__name__}, expected an object; correct it.")
        missing = [key for key in required if key not in row]
        if missing:
            raise EvaluationError(f"Line {number} of {path} has no {missing[0]!r}; give a file that has it everywhere.")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # What a model wrote may hold lone surrogates, which no UTF-8 carries.
    temporary.write_bytes(text.encode("utf-8", "replace"))
    temporary.replace(path)


def whole_number(row: Mapping[str, Any], key: str, path: Path) -> int:
    """Return a whole number of a row; FastChat's files also have them as text."""
    try:
        return int(row[key])
    except (TypeError, ValueError, OverflowError) as error:
        raise EvaluationError(
            f"{path}: {key!r} is {str(row[key])[:40]!r}, expected a whole number; correct it."
        ) from error


def texts(value: Any, what: str, path: Path) -> tuple[str, ...]:
    """Return a list of texts, or say what of the file is none: a text alone would count as its letters."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise EvaluationError(f"{path}: {what} is no list of texts; give one text a turn.")
    return tuple(value)


def first_turns(row: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return what FastChat keeps in ``choices[0].turns`` of an answer."""
    what = f"choices[0].turns of question {row['question_id']}"
    try:
        turns = row["choices"][0]["turns"]
    except (IndexError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: {what} is missing; FastChat writes it.") from error
    return texts(turns, what, path)
