"""The tokens of encoded dialogues in flat arrays, with the bytes of the responses that every token covers.

Legend: T tokens of one dialogue, N response positions of one dialogue, M tokens of a batch of dialogues, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusion_core.dialogues import Dialogue


@dataclass(frozen=True, eq=False)
class EncodedDialogue:
    """One dialogue in one model's tokens; what follows the last response position is left out.

    Parameters
    ----------
    dialogue_id, domain : str
    input_ids : int32 [T]
    response_positions : int32 [N]
        Indices t, ascending, where the next token ``input_ids[t + 1]``, the label, belongs to a response.
    turns : int32 [N]
        Which response of the dialogue, from 0.
    byte_starts, byte_ends : int32 [N]
        Span of the label in the UTF-8 bytes of its response. The first label of a response may begin before it
        (``byte_starts`` below 0) with a word-start space or the end of the template's text: so many of the token's
        bytes. For an end of turn both are the response's length. Where the tokenizer changed the text, a span may be
        longer or shorter than its token, or empty.
    is_end_of_turn : bool [N]
    response_bytes : int
        Bytes of all responses that the labels cover.
    """

    dialogue_id: str
    domain: str
    input_ids: np.ndarray
    response_positions: np.ndarray
    turns: np.ndarray
    byte_starts: np.ndarray
    byte_ends: np.ndarray
    is_end_of_turn: np.ndarray
    response_bytes: int

    @property
    def labels(self) -> np.ndarray:
        """The token after each response position, int32 [N]."""
        return self.input_ids[self.response_positions + 1]


class Placement(NamedTuple):
    """Where the tokens of one segment stand in its response: the first of them, and int64 starts and ends of all."""

    first: int
    starts: np.ndarray
    ends: np.ndarray


class EncodedBatch:
    """The tokens of some dialogues in flat arrays, with the bytes they cover.

    Parameters
    ----------
    segment_ids : list of list of int [S]
    responses : list of bytes [S]
    first_segments : int64 [dialogues + 1]
    lengths : int32 [V]
        Bytes of each token of the vocabulary.
    is_special : bool [V]
    changed : dict of Placement
        By segment, where counting bytes does not place them.
    """

    def __init__(
        self,
        segment_ids: list[list[int]],
        responses: list[bytes],
        first_segments: np.ndarray,
        lengths: np.ndarray,
        is_special: np.ndarray,
        changed: dict[int, Placement],
    ) -> None:
        self.segment_ids = segment_ids
        self.responses = responses
        self.is_special = is_special
        counts_S = np.array([len(ids) for ids in segment_ids], np.int64)
        ends_S = np.cumsum(counts_S)
        response_bytes_S = np.array([len(response) for response in responses], np.int64)
        segment_M = np.repeat(np.arange(len(counts_S)), counts_S)
        self.ids_M = np.array([token for ids in segment_ids for token in ids], np.int32)
        length_M = lengths[self.ids_M].astype(np.int64)
        bytes_until_M = np.cumsum(length_M)
        bytes_until_S = np.concatenate([[0], bytes_until_M])[ends_S]
        byte_end_M = response_bytes_S[segment_M] - (bytes_until_S[segment_M] - bytes_until_M)
        byte_start_M = byte_end_M - length_M
        in_response_M = (byte_end_M > 0) & (response_bytes_S[segment_M] > 0)
        for segment, placement in changed.items():
            tokens = slice(int(ends_S[segment] - counts_S[segment]), int(ends_S[segment]))
            byte_start_M[tokens], byte_end_M[tokens] = placement.starts, placement.ends
            in_response_M[tokens] = np.arange(counts_S[segment]) >= placement.first
        self.template_tokens = counts_S - np.bincount(segment_M[in_response_M], minlength=len(counts_S))

        # The first token of every segment but a dialogue's first follows a response.
        follows_S = (counts_S > 0) & ~np.isin(np.arange(len(counts_S)), first_segments)
        following = (ends_S - counts_S)[follows_S]
        following = following[is_special[self.ids_M[following]]]
        is_end_M = np.zeros(len(self.ids_M), bool)
        is_end_M[following] = True

        first_tokens = np.concatenate([[0], ends_S])[first_segments]
        dialogue_of_S = np.searchsorted(first_segments, np.arange(len(counts_S)), side="right") - 1
        label = np.flatnonzero(in_response_M | is_end_M)
        segment_of = segment_M[label]
        is_end = is_end_M[label]
        self.first_tokens = first_tokens
        # A label at a dialogue's very first token would have no position in front of it.
        self.place = (label - first_tokens[dialogue_of_S[segment_of]]).astype(np.int32)
        self.is_end = is_end
        self.turn = (segment_of - is_end - first_segments[dialogue_of_S[segment_of]]).astype(np.int32)
        length_before = response_bytes_S[segment_of - is_end]
        self.byte_end = np.where(is_end, length_before, byte_end_M[label]).astype(np.int32)
        self.byte_start = np.where(is_end, length_before, byte_start_M[label]).astype(np.int32)
        self.first_labels = np.searchsorted(label, first_tokens)

    def cut(self, row: int, dialogue: Dialogue, max_length_tokens: int) -> EncodedDialogue | None:
        """Return one dialogue cut to its first tokens, or None if that leaves no response position."""
        start, stop = int(self.first_labels[row]), int(self.first_labels[row + 1])
        stop = start + int(np.searchsorted(self.place[start:stop], max_length_tokens))
        if start < stop and self.place[start] == 0:
            start += 1
        if start == stop:
            return None
        token = int(self.first_tokens[row])
        turns, byte_ends = self.turn[start:stop], self.byte_end[start:stop]
        last_of_turn = np.append(turns[1:] != turns[:-1], True)
        return EncodedDialogue(
            dialogue_id=dialogue.id,
            domain=dialogue.domain,
            input_ids=self.ids_M[token : token + int(self.place[stop - 1]) + 1],
            response_positions=self.place[start:stop] - 1,
            turns=turns,
            byte_starts=self.byte_start[start:stop],
            byte_ends=byte_ends,
            is_end_of_turn=self.is_end[start:stop],
            response_bytes=int(byte_ends[last_of_turn].sum()),
        )
