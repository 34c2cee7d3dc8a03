"""Dialogues gained and lost: order, spans that join to the text, and characters that tokens cut."""

import numpy as np

from fusion_core.dialogues import Dialogue
from fusion_core.dialogues.turns import Turn
from fusion_core.evaluation.dialogue_changes import largest_changes
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores

RESPONSES = ("Grüße aus Köln, und nun viel Spaß beim Lesen!", "Ja, 😀 gern geschehen, bis zum nächsten Mal.")


def scored(model: str, nats_per_byte: dict[str, float], step: int) -> HeldOutScores:
    lengths = tuple(len(text.encode()) for text in RESPONSES)
    ends: list[int] = []
    start = 0
    for length in lengths:
        ends += [*range(start + step, start + length, step), start + length, start + length + 1]
        start += length + 1
    widths = np.diff([0, *ends])
    return HeldOutScores(
        model_name=model,
        max_length_tokens=100,
        dialogues=tuple(
            DialogueScore(
                dialogue_id=one,
                domain="talk",
                response_bytes=lengths,
                ends=tuple(ends),
                nats=tuple(float(level * width) for width in widths),
            )
            for one, level in nats_per_byte.items()
        ),
        refused={},
    )


def dialogues(*ids: str) -> list[Dialogue]:
    turns = tuple(turn for text in RESPONSES for turn in (Turn("user", f"<b>{text[:3]}</b>?"), Turn("assistant", text)))
    return [Dialogue(one, "talk", turns) for one in ids]


def test_order_counts_and_text() -> None:
    pivot = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    fused = {"a": 0.5, "b": 1.2, "c": 0.9, "d": 1.0}
    # Steps of 3 and 2 bytes: most ends lie inside some character for one of both models.
    scores = {"pivot": scored("pivot", pivot, 3), "fused": scored("fused", fused, 2)}
    changes = largest_changes(scores, dialogues(*pivot), "fused", "pivot", count=2)
    assert changes is not None
    assert [one.dialogue_id for one in changes.gained] == ["a", "c"]
    assert [one.dialogue_id for one in changes.lost] == ["b"]
    assert (changes.better, changes.worse) == (2, 1)
    best = changes.gained[0]
    assert best.change == best.nats_per_byte["fused"] - best.nats_per_byte["pivot"]
    for turn, original in zip(best.turns, dialogues("a")[0].turns, strict=True):
        assert "".join(span.text for span in turn.spans) == original.content
        assert all(span.change is None for span in turn.spans) == (turn.role == "user")
    scored_spans = [span for turn in best.turns for span in turn.spans if span.change is not None]
    total = sum(span.change for span in scored_spans)
    # The ends of turns have nats and no text.
    assert abs(total - best.change * best.response_bytes) < 1.5
    assert all(span.change < 0 for span in scored_spans)


def test_long_turns_are_cut_and_it_is_said() -> None:
    long = Dialogue("a", "talk", (Turn("user", "x" * 5000), *dialogues("a")[0].turns[1:]))
    scores = {"pivot": scored("pivot", {"a": 1.0}, 3), "fused": scored("fused", {"a": 0.5}, 3)}
    changes = largest_changes(scores, [long], "fused", "pivot")
    assert changes is not None
    assert changes.gained[0].turns[0].characters_left_out == 3500


def test_no_common_dialogue_is_none() -> None:
    scores = {"pivot": scored("pivot", {"a": 1.0}, 3), "fused": scored("fused", {"b": 1.0}, 3)}
    assert largest_changes(scores, dialogues("a", "b"), "fused", "pivot") is None
