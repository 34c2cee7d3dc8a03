"""Rows of every format become dialogues, and malformed ones say why they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusion_core.config import DialogueFile
from fusion_core.dialogues import (
    Dialogue,
    MalformedRowError,
    Turn,
    dialogue_id,
    parse_row,
)
from tests.fusion_core.dialogues.data_fixtures import (
    EXCHANGE,
    HELLO,
    SHAREGPT,
    exchange,
    turns,
)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": EXCHANGE}, HELLO),
        ({"conversation": EXCHANGE, "id": 3}, HELLO),
        ({"dialogue": EXCHANGE}, HELLO),
        ({"conversations": SHAREGPT}, HELLO),
        ({"items": SHAREGPT, "system": ""}, HELLO),
        ({"conversations": EXCHANGE}, HELLO),
        ({"messages": SHAREGPT}, HELLO),
        ({"messages": [{"role": "System", "content": "Be kind."}, *EXCHANGE]}, (("system", "Be kind."), *HELLO)),
        ({"system_prompt": "Be kind.", "question": "Hi", "response": "Hello."}, (("system", "Be kind."), *HELLO)),
        # A system turn in the list is the one that was said.
        ({"system": "Be curt.", **turns(("system", "Be kind."), *HELLO)}, (("system", "Be kind."), *HELLO)),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, HELLO),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, (("user", "Add.\n\n1 2"), ("assistant", "3"))),
        ({"instruction": "Hi", "response": "Hello."}, HELLO),
        ({"instruction": "Hi", "instances": [{"input": "", "output": "Hello."}]}, HELLO),
        ({"question": "Hi", "answer": "Hello."}, HELLO),
        ({"prompt": "Hi", "completion": "Hello."}, HELLO),
        # The list of turns is the dialogue; the prompt beside it only repeats its beginning.
        ({"prompt": "Hi", "response": "no", "messages": EXCHANGE}, HELLO),
        # Composed, as most tokenizers with a normaliser do it.
        ({"question": "cafe\u0301?", "answer": "Oui."}, (("user", "caf\u00e9?"), ("assistant", "Oui."))),
    ],
)
def test_row_formats(row: dict[str, Any], turns: tuple) -> None:
    dialogue, unanswered = parse_row(row, DialogueFile(path=Path("x.jsonl"), domain="talk"))
    assert dialogue == Dialogue(dialogue_id([Turn(*turn) for turn in turns]), "talk", turns)
    assert not unanswered


def test_id_is_the_hash_of_the_turns_alone() -> None:
    # printf '[["user","Hi"],["assistant","Hello."]]' | sha256sum
    assert dialogue_id([Turn(*turn) for turn in HELLO]) == "6b1f609abb91226b9e9e68235c5b655b"


def test_row_keeps_its_own_domain() -> None:
    file = DialogueFile(path=Path("x.jsonl"), domain="talk")
    domains = [parse_row(exchange(1, **extra), file)[0].domain for extra in ({"domain": "a"}, {"dataset": "b"}, {})]
    assert domains == ["a", "b", "talk"]


def test_unanswered_last_turn_is_dropped() -> None:
    row = {"messages": [*EXCHANGE, {"role": "user", "content": "Anyone?"}]}
    dialogue, unanswered = parse_row(row, DialogueFile(path=Path("x.jsonl")))
    assert unanswered and dialogue.turns == HELLO


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no assistant turn"),
        (turns(("user", "Hi")), "no assistant turn"),
        (turns(("system", "Hi")), "no assistant turn"),
        (turns(("user", "Hi"), ("assistant", "  \n")), "turn 2 is empty"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "turns 1 and 2 are both user turns"),
        (turns(("user", "a"), ("assistant", "b"), ("assistant", "c")), "turns 2 and 3 are both assistant turns"),
        (turns(("assistant", "a"), ("user", "b"), ("assistant", "c")), "turn 1 is an assistant turn with no user turn"),
        (turns(("system", "a"), ("assistant", "b")), "turn 2 is an assistant turn with no user turn"),
        (turns(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is a system turn"),
        (turns(("user", 7), ("assistant", "b")), "turn 1 holds int"),
        (turns(("user", None), ("assistant", "b")), "turn 1 holds NoneType"),
        (turns(("user", [{"type": "text"}]), ("assistant", "b")), "turn 1 holds list"),
        (turns(("user", "a"), ("tool", "b")), "turn 2 has the role 'tool'"),
        (turns((None, "a"), ("assistant", "b")), "turn 1 has the role None"),
        (turns(("user", "a \ud83d b"), ("assistant", "b")), r"turn 1 has a lone surrogate (U+D83D)"),
        ({"messages": ["Hi", "Hello."]}, "turn 1 has str"),
        ({"messages": [{"role": "user"}]}, "turn 1 has the fields role"),
        ({"messages": "Hi"}, "no known format"),
        ({"text": "Hi"}, "its fields ('text') are those of no known format"),
        ({}, "its fields (none)"),
        ([1, 2], "it is list"),
        ("Hi", "it is str"),
        (None, "it is NoneType"),
        ({"instruction": "Hi"}, "none of the fields output and response"),
        ({"instruction": None, "output": "b"}, "turn 1 holds NoneType"),
        ({"instruction": "Hi", "input": 3, "output": "b"}, "'input' holds int"),
        ({"instruction": "Hi", "instances": [{}, {}]}, "'instances' hold 2 entries"),
        (exchange(1, domain=5), "'domain' holds int"),
        (exchange(1, system=5), "turn 1 holds int"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row: Any, reason: str) -> None:
    with pytest.raises(MalformedRowError) as caught:
        parse_row(row, DialogueFile(path=Path("x.jsonl")))
    assert reason in caught.value.reason
    assert caught.value.kind


def test_named_format_is_not_guessed() -> None:
    row = {"messages": SHAREGPT}
    assert parse_row(row, DialogueFile(path=Path("x.jsonl"), format="sharegpt"))[0].turns == HELLO
    with pytest.raises(MalformedRowError, match="expected an object with 'role' and 'content'"):
        parse_row(row, DialogueFile(path=Path("x.jsonl"), format="messages"))
    with pytest.raises(MalformedRowError, match="none of the pairs"):
        parse_row(row, DialogueFile(path=Path("x.jsonl"), format="question_answer"))
