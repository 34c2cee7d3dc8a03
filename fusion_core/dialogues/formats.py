"""Rows of the data formats in use to dialogues: messages, ShareGPT, Alpaca, and question with answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusion_core.config import DialogueFile
from fusion_core.dialogues.turns import Dialogue, MalformedRowError, check_turns, dialogue_id

# Where rows keep their list of turns; the first of these that a row has is taken.
TURN_LIST_FIELDS = ("messages", "conversations", "conversation", "dialogue", "items")
# What rows that hold one exchange call its two sides; the first pair that a row has is taken.
QUESTION_ANSWER_FIELDS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
)
ALPACA_ANSWER_FIELDS = ("output", "response")
SYSTEM_FIELDS = ("system", "system_prompt")
DOMAIN_FIELDS = ("domain", "dataset")
# A domain heads columns of tables and is part of the names of metrics.
LONGEST_DOMAIN = 100

RawTurns = list[tuple[Any, Any]]


def parse_row(row: Any, file: DialogueFile) -> tuple[Dialogue, bool]:
    """Turn one row into a dialogue.

    Parameters
    ----------
    row : any JSON value
    file : DialogueFile
        Gives the row format and the domain of rows that name none themselves.

    Returns
    -------
    Dialogue
    bool
        Whether an unanswered last user turn was dropped.

    Raises
    ------
    MalformedRowError
        If the row is not of the format, or its turns break a rule of dialogues.
    """
    if not isinstance(row, dict):
        raise MalformedRowError(
            "row that is not an object", f"it is {type(row).__name__}, expected an object with fields"
        )
    row_format = recognise_format(row) if file.format == "auto" else file.format
    raw_turns = READERS[row_format](row)
    system = _system_text(row)
    if system and not (raw_turns and raw_turns[0][0] == "system"):
        raw_turns.insert(0, ("system", system))
    turns, unanswered = check_turns(raw_turns)
    return Dialogue(dialogue_id(turns), _domain(row, file.domain), turns), unanswered


def recognise_format(row: dict[str, Any]) -> str:
    """Tell a row's format from its fields.

    Raises
    ------
    MalformedRowError
        If its fields belong to none of the formats.
    """
    for field in TURN_LIST_FIELDS:
        turns = row.get(field)
        if isinstance(turns, list):
            first = turns[0] if turns else None
            return "sharegpt" if isinstance(first, dict) and "from" in first else "messages"
    if "instruction" in row:
        return "alpaca"
    if any(question in row and answer in row for question, answer in QUESTION_ANSWER_FIELDS):
        return "question_answer"
    fields = ", ".join(repr(name) for name in list(row)[:8]) or "none"
    raise MalformedRowError(
        "unknown format",
        f"its fields ({fields}) are those of no known format; expected a list of turns in 'messages' or "
        "'conversations', or 'instruction' with 'output', or 'question' with 'answer'",
    )


def _read_messages(row: dict[str, Any]) -> RawTurns:
    return _read_turn_list(row, "role", "content")


def _read_sharegpt(row: dict[str, Any]) -> RawTurns:
    return _read_turn_list(row, "from", "value")


def _read_turn_list(row: dict[str, Any], role_field: str, content_field: str) -> RawTurns:
    present = [field for field in TURN_LIST_FIELDS if field in row]
    field = next((name for name in present if isinstance(row[name], list)), None)
    if field is None:
        found = f"{present[0]!r} holds {type(row[present[0]]).__name__}" if present else "it has none of them"
        raise MalformedRowError(
            "no list of turns", f"a list of turns is expected in one of {', '.join(TURN_LIST_FIELDS)}, but {found}"
        )
    turns: RawTurns = []
    for number, turn in enumerate(row[field], start=1):
        if not isinstance(turn, dict) or role_field not in turn or content_field not in turn:
            found = f"the fields {', '.join(map(str, turn))}" if isinstance(turn, dict) else type(turn).__name__
            raise MalformedRowError(
                "turn without role or content",
                f"turn {number} has {found}, expected an object with {role_field!r} and {content_field!r}",
            )
        turns.append((turn[role_field], turn[content_field]))
    return turns


def _read_alpaca(row: dict[str, Any]) -> RawTurns:
    instances = row.get("instances")
    exchange = row
    if isinstance(instances, list) and not any(field in row for field in ALPACA_ANSWER_FIELDS):
        if len(instances) != 1 or not isinstance(instances[0], dict):
            raise MalformedRowError(
                "not exactly one instance",
                f"its 'instances' hold {len(instances)} entries, expected one object; write one row for each",
            )
        exchange = instances[0]
    instruction = row.get("instruction")
    extra = exchange.get("input")
    if isinstance(instruction, str) and isinstance(extra, str) and extra.strip():
        instruction = f"{instruction.strip()}\n\n{extra.strip()}"
    elif extra is not None and not isinstance(extra, str):
        raise MalformedRowError(
            "turn that is not text", f"'input' holds {type(extra).__name__}, expected a string of text"
        )
    answer = next((exchange[field] for field in ALPACA_ANSWER_FIELDS if field in exchange), None)
    if answer is None:
        raise MalformedRowError("no answer", f"it has none of the fields {' and '.join(ALPACA_ANSWER_FIELDS)}")
    return [("user", instruction), ("assistant", answer)]


def _read_question_answer(row: dict[str, Any]) -> RawTurns:
    for question, answer in QUESTION_ANSWER_FIELDS:
        if question in row and answer in row:
            return [("user", row[question]), ("assistant", row[answer])]
    pairs = ", ".join(f"{question}/{answer}" for question, answer in QUESTION_ANSWER_FIELDS)
    raise MalformedRowError("no answer", f"it has none of the pairs of fields {pairs}")


READERS: dict[str, Callable[[dict[str, Any]], RawTurns]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "question_answer": _read_question_answer,
}


def _system_text(row: dict[str, Any]) -> Any:
    for field in SYSTEM_FIELDS:
        value = row.get(field)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return value
    return None


def _domain(row: dict[str, Any], default: str) -> str:
    for field in DOMAIN_FIELDS:
        value = row.get(field)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise MalformedRowError(
                "domain that is not text", f"its field {field!r} holds {type(value).__name__}, expected a name"
            )
        if not value.isprintable() or len(value) > LONGEST_DOMAIN:
            raise MalformedRowError(
                "domain that is no name",
                f"its field {field!r} is {value!r:.60}, expected a name of at most {LONGEST_DOMAIN} printable "
                "characters",
            )
        return value
    return default
