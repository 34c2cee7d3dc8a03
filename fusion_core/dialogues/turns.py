"""What a dialogue is, and the rules its turns obey."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fusion_core.errors import DialogueError

Role = Literal["system", "user", "assistant"]

# The names under which data sets at large write the three roles, in lower case.
ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class MalformedRowError(DialogueError):
    """One row is no usable dialogue; it goes to the quarantine file and is counted.

    Parameters
    ----------
    kind : str
        What is wrong in few words, the same for every row with this fault; what is counted.
    reason : str
        What is wrong with this row, as a clause without a full stop.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Turn(NamedTuple):
    """What one side says at once; the content is in Unicode's NFC, stripped of white space at its ends, never empty."""

    role: Role
    content: str


@dataclass(frozen=True)
class Dialogue:
    """Turns in order: an optional system turn, then user and assistant in alternation, ending with the assistant.

    Parameters
    ----------
    id : str
        First 32 hex digits of SHA-256 over the turns; equal turns have equal ids whatever file they came from.
    domain : str
    turns : tuple of Turn
    """

    id: str
    domain: str
    turns: tuple[Turn, ...]

    @property
    def responses(self) -> list[str]:
        """The contents of the assistant turns, in order."""
        return [turn.content for turn in self.turns if turn.role == "assistant"]


def dialogue_id(turns: Sequence[Turn]) -> str:
    """Return the first 32 hex digits of SHA-256 over the turns as canonical JSON ``[[role, content], ...]``."""
    canonical = json.dumps([[role, content] for role, content in turns], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def opening_id(turns: Sequence[Turn]) -> str:
    """Return the id that the dialogue would have if it ended with its first response."""
    first_response = next(index for index, turn in enumerate(turns) if turn.role == "assistant")
    return dialogue_id(turns[: first_response + 1])


def check_turns(turns: Sequence[tuple[Any, Any]]) -> tuple[tuple[Turn, ...], bool]:
    """Turn raw (role, content) pairs into the turns of a dialogue.

    Contents are stripped of white space at their ends and composed to Unicode's NFC. A last user turn that nobody
    answers carries no response, so it is dropped.

    Returns
    -------
    tuple of Turn
    bool
        Whether an unanswered last user turn was dropped.

    Raises
    ------
    MalformedRowError
        For an unknown role, a content that is no text or empty, a lone surrogate, a system turn after the first, a
        first turn of the assistant, two turns of one side in a row, or no assistant turn at all.
    """
    checked: list[Turn] = []
    for number, (raw_role, raw_content) in enumerate(turns, start=1):
        turn = Turn(_role(raw_role, number), _content(raw_content, number))
        _check_order(checked[-1].role if checked else None, turn.role, number)
        checked.append(turn)
    unanswered = bool(checked) and checked[-1].role == "user"
    if unanswered:
        checked.pop()
    if not any(turn.role == "assistant" for turn in checked):
        raise MalformedRowError("no assistant turn", "it has no assistant turn, so there is nothing to learn from")
    return tuple(checked), unanswered


def _role(raw: Any, number: int) -> Role:
    role = ROLE_NAMES.get(raw.strip().lower()) if isinstance(raw, str) else None
    if role is None:
        raise MalformedRowError(
            "unknown role", f"turn {number} has the role {raw!r:.60}, expected system, user/human or assistant/gpt"
        )
    return role


def _content(raw: Any, number: int) -> str:
    if not isinstance(raw, str):
        raise MalformedRowError(
            "turn that is not text", f"turn {number} holds {type(raw).__name__}, expected a string of text"
        )
    # Many tokenizers compose characters (NFC) before they split text; composed here, every model reads the same bytes.
    content = unicodedata.normalize("NFC", raw).strip()
    if not content:
        raise MalformedRowError("empty turn", f"turn {number} is empty")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise MalformedRowError(
            "lone surrogate",
            f"turn {number} has a lone surrogate (U+{ord(content[error.start]):04X}), which is no valid Unicode",
        ) from None
    return content


def _check_order(previous: Role | None, role: Role, number: int) -> None:
    if role == "system":
        if previous is not None:
            raise MalformedRowError(
                "system turn after the first", f"turn {number} is a system turn, which only the first may be"
            )
    elif role == previous:
        raise MalformedRowError(
            f"two {role} turns in a row", f"turns {number - 1} and {number} are both {role} turns, expected alternation"
        )
    elif role == "assistant" and previous != "user":
        raise MalformedRowError(
            "assistant turn first", f"turn {number} is an assistant turn with no user turn before it"
        )
