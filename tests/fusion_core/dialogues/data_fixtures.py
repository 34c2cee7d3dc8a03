"""Rows, data files and preparation for the tests of this package."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues import (
    Dialogue,
    PreparationReport,
    load_dialogues,
    prepare_dialogues,
)

EXCHANGE = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello."}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
HELLO = (("user", "Hi"), ("assistant", "Hello."))


def exchange(number: int, **extra: Any) -> dict[str, Any]:
    return {"question": f"What is {number}?", "answer": f"It is {number}.", **extra}


def write_lines(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def prepare(path: Path, output: Path, file: dict[str, Any] | None = None, **settings: Any) -> PreparationReport:
    entry = DialogueFile(path=path, **(file or {}))
    return prepare_dialogues([(entry, path)], DialoguesConfig(files=(entry,), **settings), output)


def load_part(output: Path, part: str) -> list[Dialogue]:
    return [dialogue for path in sorted((output / part).iterdir()) for dialogue in load_dialogues(path)]


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}
