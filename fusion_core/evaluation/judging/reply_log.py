"""Every reply that was paid for, kept at once: what makes judging resumable at any instant."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_core.errors import EvaluationError, first_line
from fusion_core.evaluation.judging.chat_client import Reply


class ReplyLog:
    """Replies by what was asked, in a JSONL file that survives a kill between any two bytes.

    Parameters
    ----------
    path : Path
        Created with its folder. A last line that a kill cut short is taken off.

    Raises
    ------
    EvaluationError
        If another line of it is none of this log's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._replies: dict[str, tuple[Reply, float]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            self._take(line, number)

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str) -> tuple[Reply, float] | None:
        """Return the reply to what has this key and when it came (unix seconds), None where there is none yet."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply, at: float) -> None:
        """Keep a reply; it is on the disk when this returns."""
        row = {
            "key": key,
            "reply": reply.text,
            "finished": reply.finished,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "tstamp": at,
            **({"first_token": reply.first_token} if reply.first_token else {}),
        }
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._lock, self._path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._replies[key] = (reply, at)

    def _take(self, line: bytes, number: int) -> None:
        try:
            row: Any = json.loads(line)
            likeliest = row.get("first_token", {})
            right = isinstance(row["reply"], str) and isinstance(likeliest, dict)
            counts = (row["prompt_tokens"], row["completion_tokens"])
            if not right or not all(isinstance(one, int) for one in (*counts, row["finished"])):
                raise ValueError("a value is of another type than ours")
            reply = Reply(
                row["reply"],
                bool(row["finished"]),
                *counts,
                {str(token): float(value) for token, value in likeliest.items()},
            )
            self._replies[str(row["key"])] = (reply, float(row["tstamp"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise EvaluationError(
                f"Line {number} of {self._path} is no reply of a judge ({first_line(error)}); take that line out, or "
                "move the file away and pay for its judgments again."
            ) from error


def reply_key(
    model: str,
    base_url: str | None,
    messages: Sequence[Mapping[str, str]],
    temperature: float,
    max_tokens: int,
    sample: int,
    attempt: int,
    top_logprobs: int | None = None,
) -> str:
    """Return a digest of all that decides a reply: of equal requests, ``sample`` and ``attempt`` tell which one."""
    asked = [model, base_url, [dict(one) for one in messages], temperature, max_tokens, sample, attempt, top_logprobs]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
