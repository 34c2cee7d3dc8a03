"""The held-out dialogues on which a model gained and lost most against a baseline, down to the words.

Legend: D dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion_core.dialogues import Dialogue
from fusion_core.evaluation.common_bytes import common_coverage
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores
from fusion_core.record import Record

# On a response of few bytes one token decides everything.
MIN_RESPONSE_BYTES = 32
LONGEST_TURN_CHARACTERS = 1500


class Span(Record):
    """A piece of a response and by how many nats the model is better (negative) or worse at it; None: not scored."""

    text: str
    change: float | None = None


class ShownTurn(Record):
    """One turn: who speaks, and the text in spans; what was left out at its end is counted."""

    role: str
    spans: tuple[Span, ...]
    characters_left_out: int = 0


class DialogueChange(Record):
    """One dialogue under several models.

    Parameters
    ----------
    dialogue_id, domain : str
    turns : tuple of ShownTurn
    nats_per_byte : dict
        Model to nats per response byte, over what all models read.
    change : float
        The model's nats per byte less the baseline's.
    response_bytes : int
    """

    dialogue_id: str
    domain: str
    turns: tuple[ShownTurn, ...]
    nats_per_byte: dict[str, float]
    change: float
    response_bytes: int


class DialogueChanges(Record):
    """The dialogues that changed most, those of the greatest gain and those of the greatest loss first."""

    model: str
    baseline: str
    gained: tuple[DialogueChange, ...]
    lost: tuple[DialogueChange, ...]
    better: int
    worse: int


def largest_changes(
    scores: Mapping[str, HeldOutScores], dialogues: Sequence[Dialogue], model: str, baseline: str, count: int = 3
) -> DialogueChanges | None:
    """Find the dialogues where a model's nats per byte fell and rose most against the baseline's.

    Parameters
    ----------
    scores : mapping from model name to HeldOutScores
        Every model that is to stand beside them.
    dialogues : sequence of Dialogue
        The held-out dialogues, for their text.
    model, baseline : str
    count : int
        Dialogues on each side, at most.

    Returns
    -------
    DialogueChanges or None
        None where no dialogue was read by all.
    """
    names = list(scores)
    covered, _ = common_coverage(scores)
    texts = {dialogue.id: dialogue for dialogue in dialogues}
    covered = [dialogue for dialogue in covered if dialogue.id in texts]
    if not covered:
        return None
    ours, theirs = names.index(model), names.index(baseline)
    changes_D = np.array([(one.nats[ours] - one.nats[theirs]) / one.bytes for one in covered])
    long_D = np.array([one.bytes >= MIN_RESPONSE_BYTES for one in covered])
    order = np.argsort(changes_D, kind="stable")
    gained = [index for index in order if changes_D[index] < 0 and long_D[index]][:count]
    lost = [index for index in order[::-1] if changes_D[index] > 0 and long_D[index]][:count]
    pairs = {name: {score.dialogue_id: score for score in scores[name].dialogues} for name in (model, baseline)}

    def show(index: int) -> DialogueChange:
        one = covered[index]
        return DialogueChange(
            dialogue_id=one.id,
            domain=one.domain,
            turns=_turns(texts[one.id], pairs[model][one.id], pairs[baseline][one.id]),
            nats_per_byte={name: nats / one.bytes for name, nats in zip(names, one.nats, strict=True)},
            change=float(changes_D[index]),
            response_bytes=one.bytes,
        )

    return DialogueChanges(
        model=model,
        baseline=baseline,
        gained=tuple(map(show, gained)),
        lost=tuple(map(show, lost)),
        better=int((changes_D < 0).sum()),
        worse=int((changes_D > 0).sum()),
    )


def _turns(dialogue: Dialogue, ours: DialogueScore, theirs: DialogueScore) -> tuple[ShownTurn, ...]:
    turns, start = [], 0
    for turn in dialogue.turns:
        if turn.role != "assistant":
            turns.append(_cut(turn.role, (Span(text=turn.content),)))
            continue
        content = turn.content.encode()
        turns.append(_cut(turn.role, _spans(content, start, ours, theirs)))
        # One more for the end of the turn, as places in the scores are counted.
        start += len(content) + 1
    return tuple(turns)


def _spans(content: bytes, start: int, ours: DialogueScore, theirs: DialogueScore) -> tuple[Span, ...]:
    """Split a response at every place where labels of both models end, with the change between these places."""
    stop = start + len(content) + 1
    common = np.intersect1d(ours.ends, theirs.ends)
    spans, at = [], start
    for end in common[(common > start) & (common <= stop)]:
        # The last place is the end of the turn, which has no text.
        text = _text(content[at - start : min(int(end), stop - 1) - start])
        if text is None:
            # The place lies inside a character: the next span takes this one with it.
            continue
        change = _nats_between(ours, at, int(end)) - _nats_between(theirs, at, int(end))
        spans.append(Span(text=text, change=round(change, 4)))
        at = int(end)
    if at < stop - 1:
        spans.append(Span(text=content[at - start :].decode("utf-8", "replace")))
    return tuple(span for span in spans if span.text)


def _nats_between(score: DialogueScore, start: int, end: int) -> float:
    ends = np.asarray(score.ends)
    return float(np.asarray(score.nats)[(ends > start) & (ends <= end)].sum())


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _cut(role: str, spans: tuple[Span, ...]) -> ShownTurn:
    kept, room = [], LONGEST_TURN_CHARACTERS
    total = sum(len(span.text) for span in spans)
    for span in spans:
        if room <= 0:
            break
        kept.append(span.model_copy(update={"text": span.text[:room]}))
        room -= len(span.text)
    return ShownTurn(role=role, spans=tuple(kept), characters_left_out=max(0, total - LONGEST_TURN_CHARACTERS))
