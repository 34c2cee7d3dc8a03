"""How many tokens and response positions dialogues are for one tokenizer, counted or estimated from a sample."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion_core.errors import DialogueRefusedError
from fusion_core.record import Record

if TYPE_CHECKING:
    from fusion_core.dialogues import Dialogue
    from fusion_core.encoding.encoder import Encoder

SAMPLE_DIALOGUES = 512


class EncodedCounts(Record):
    """Size of some dialogues in one model's tokens.

    Parameters
    ----------
    dialogues : int
        Dialogues that the model's tokenizer accepts.
    tokens : int
        All tokens, after the cut at the longest length.
    squared_tokens : int
        Sum of the squared lengths, which attention costs.
    positions : int
        Response positions.
    longest : int
        Tokens of the longest dialogue seen.
    counted : int
        Dialogues that were encoded; fewer than there are where the rest is an estimate from this seeded sample.
    exact : bool
        Whether all dialogues were encoded.
    """

    dialogues: int
    tokens: int
    squared_tokens: int
    positions: int
    longest: int
    counted: int
    exact: bool


def count_encoded(
    dialogues: Sequence[Dialogue],
    encoder: Encoder,
    *,
    total: int | None = None,
    sample: int = SAMPLE_DIALOGUES,
    seed: int = 0,
) -> EncodedCounts:
    """Count tokens and response positions; of more than ``sample`` dialogues, only a seeded sample is encoded.

    Parameters
    ----------
    dialogues : sequence of Dialogue
    encoder : Encoder
        Of the model whose tokens count.
    total : int, optional
        For how many dialogues these stand, where they are some of more.
    sample : int
        Largest number of dialogues to encode.
    seed : int
        Seed of the sample.
    """
    total = len(dialogues) if total is None else total
    exact = total <= sample and len(dialogues) == total
    chosen = dialogues if len(dialogues) <= sample else random.Random(seed).sample(list(dialogues), sample)
    lengths, positions = [], 0
    for dialogue in chosen:
        try:
            encoded = encoder.encode(dialogue)
        except DialogueRefusedError:
            continue
        lengths.append(len(encoded.input_ids))
        positions += len(encoded.response_positions)
    scale = total / len(chosen) if chosen else 1.0
    return EncodedCounts(
        dialogues=round(len(lengths) * scale),
        tokens=round(sum(lengths) * scale),
        squared_tokens=round(sum(length * length for length in lengths) * scale),
        positions=round(positions * scale),
        longest=max(lengths, default=0),
        counted=len(chosen),
        exact=exact,
    )
