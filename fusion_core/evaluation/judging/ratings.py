"""Reading a judge's verdict out of its reply, as FastChat does (fastchat/llm_judge/common.py)."""

from __future__ import annotations

import re
from typing import Literal

LOWEST_RATING, HIGHEST_RATING = 1, 10
# FastChat's patterns, so written that a million digits without an end take no quadratic time.
RATING = re.compile(r"\[\[(\d+(?:\.\d*)?)\]\]")
RATING_IN_SINGLE_BRACKETS = re.compile(r"\[(\d+(?:\.\d*)?)\]")

RATING_REMINDER = (
    "Your reply has no rating from 1 to 10 in the format that was asked for. Reply with the rating alone, by strictly "
    'following this format: "[[rating]]", for example: "Rating: [[5]]".'
)
VERDICT_REMINDER = (
    "Your reply has no verdict in the format that was asked for. Reply with the verdict alone: "
    '"[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and "[[C]]" for a tie.'
)

Verdict = Literal["A", "B", "tie"]


def read_rating(reply: str) -> float | int | None:
    """Return the first ``[[rating]]`` of a reply, else its first ``[rating]``; None where there is none within 1 to 10.

    FastChat takes any number; here an 11 or a 0 is no rating, since the scale has none.
    """
    found = RATING.search(reply) or RATING_IN_SINGLE_BRACKETS.search(reply)
    if found is None:
        return None
    value = float(found[1])
    if not LOWEST_RATING <= value <= HIGHEST_RATING:
        return None
    return value if "." in found[1] else int(value)


def read_verdict(reply: str) -> Verdict | None:
    """Return which answer a pairwise reply prefers: ``[[A]]``, ``[[B]]`` or ``[[C]]`` for a tie; None without any."""
    for mark, verdict in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")):
        if mark in reply:
            return verdict  # type: ignore[return-value]
    return None
