"""The text that two models have read, and where the tokens of each stand in it.

Legend: N tokens with a distribution, D dialogues, B bytes of all responses. Offsets are bytes into one buffer that
holds every response of every dialogue, each followed by one byte that no UTF-8 text has, so that the end of a response
and the start of the next differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fusion_core.encoding.token_bytes import TokenBytes

if TYPE_CHECKING:
    from fusion_core.dialogues import Dialogue
    from fusion_core.encoding.encoder import EncodedDialogue

BETWEEN_RESPONSES = b"\xff"


@dataclass(frozen=True)
class Spans:
    """Where one model's gold tokens stand.

    Parameters
    ----------
    starts, ends : int64 [N]
        Bytes covered, never falling; an end of turn covers none, after its response.
    leads : int32 [N]
        Bytes of the token before its response: the first token may carry a word-start space or template bytes.
    labels : int32 [N]
        The tokens' ids.
    is_end_of_turn : bool [N]
    row_splits : int64 [D + 1]
    """

    starts: np.ndarray
    ends: np.ndarray
    leads: np.ndarray
    labels: np.ndarray
    is_end_of_turn: np.ndarray
    row_splits: np.ndarray


@dataclass(frozen=True)
class SharedText:
    """Everything about the gold text that projection needs.

    Parameters
    ----------
    text : uint8 [B]
    pivot, source : Spans
    pivot_bytes, source_bytes : TokenBytes
    """

    text: np.ndarray
    pivot: Spans
    source: Spans
    pivot_bytes: TokenBytes
    source_bytes: TokenBytes


def join_responses(dialogues: Sequence[Dialogue]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the buffer of all responses, uint8 [B], and for each dialogue where its responses begin, int64 each."""
    pieces: list[bytes] = []
    starts: list[np.ndarray] = []
    size = 0
    for dialogue in dialogues:
        begins = []
        for turn in dialogue.turns:
            if turn.role == "assistant":
                content = turn.content.encode()
                begins.append(size)
                pieces += [content, BETWEEN_RESPONSES]
                size += len(content) + len(BETWEEN_RESPONSES)
        starts.append(np.array(begins, np.int64))
    return np.frombuffer(b"".join(pieces), np.uint8), starts


def place_tokens(encoded: Sequence[EncodedDialogue | None], response_starts: Sequence[np.ndarray]) -> Spans:
    """Place the label tokens of encoded dialogues in the buffer of :func:`join_responses`.

    Parameters
    ----------
    encoded : sequence of EncodedDialogue or None [D]
        None where the model's encoder refused the dialogue.
    response_starts : sequence of int64 arrays [D]
    """
    read = [item for item in encoded if item is not None]
    counts = np.array([0 if item is None else len(item.response_positions) for item in encoded], np.int64)
    row_splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    empty = np.zeros(0, np.int64)

    def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([empty, *parts]).astype(dtype)

    base = joined(
        [starts[item.turns] for item, starts in zip(encoded, response_starts, strict=True) if item is not None],
        np.int64,
    )
    byte_starts = joined([item.byte_starts for item in read], np.int64)
    byte_ends = joined([item.byte_ends for item in read], np.int64)
    return Spans(
        starts=base + np.maximum(byte_starts, 0),
        ends=base + np.maximum(byte_ends, 0),
        leads=np.maximum(-byte_starts, 0).astype(np.int32),
        labels=joined([item.labels for item in read], np.int32),
        is_end_of_turn=joined([item.is_end_of_turn for item in read], bool),
        row_splits=row_splits,
    )
