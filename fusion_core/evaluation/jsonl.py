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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read ({first_line(error)}); give a JSONL file.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"Line {number} of {path} is no JSON ({first_line(error)}); correct it.") from error
        missing = [key for key in required if not isinstance(row, dict) or key not in row]
        if missing:
            raise EvaluationError(f"Line {number} of {path} has no {missing[0]!r}; give a file that has it everywhere.")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
