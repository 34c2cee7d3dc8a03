"""Dialogues to one model's tokens, with the bytes of the responses that every token covers.

Legend: T tokens of one dialogue, N response positions of one dialogue, M tokens of a batch of dialogues, S segments.

A segment is the template's text and the response that follows it, or the template's text after the last response. Each
is tokenised on its own, so the end of a response is always the end of a token. Where a special token ends the turn,
which is so in nearly all templates, this gives the tokens of the whole text. Bytes are counted backwards from the
response's end, where no word-start space that a tokenizer puts in front can shift them.

The end of a turn is a response position if the first token after the response is a special one. A template that ends
its turns with ordinary text, or with a space before the special token, has no such position: what its model predicts
there is not comparable with another model's end of turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from fusion_core.chat_templates import ChatTemplate
from fusion_core.dialogues import Dialogue, Turn
from fusion_core.errors import DialogueRefusedError
from fusion_core.token_bytes import token_bytes

BATCH_DIALOGUES = 256


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
        (``byte_starts`` below 0) with a word-start space or the end of the template's text. For an end of turn both
        are the response's length.
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


class Encoder:
    """Encodes dialogues for one model, in the chat template its tokenizer carries.

    Parameters
    ----------
    tokenizer : fast tokenizer
    max_length_tokens : int
        Dialogues are cut after this many tokens, also in the middle of a response.
    model_name : str
        For messages.

    Raises
    ------
    TokenizerError
        If the tokenizer or its chat template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int, model_name: str) -> None:
        self._tokenizer = tokenizer
        self._bytes = token_bytes(tokenizer)
        self._template = ChatTemplate(tokenizer, model_name)
        self._max_length_tokens = max_length_tokens
        self._model_name = model_name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that encodes."""
        return self._tokenizer

    @property
    def end_of_turn_id(self) -> int | None:
        """The special token that ends a response, or None where the template ends turns with ordinary text."""
        probe = Dialogue("", "", (Turn("user", "question"), Turn("assistant", "answer")))
        ending = self._tokenise([self._template.render(probe)[1]])[0]
        return ending[0] if ending and self._bytes.is_special[ending[0]] else None

    def encode(self, dialogue: Dialogue) -> EncodedDialogue:
        """Encode one dialogue.

        Raises
        ------
        DialogueRefusedError
            If the template refuses it, a response contains the text of a special token, the tokenizer changes a
            response's text, or no response begins within ``max_length_tokens``.
        """
        encoded = self.encode_all([dialogue])[0]
        if isinstance(encoded, DialogueRefusedError):
            raise encoded
        return encoded

    def encode_all(self, dialogues: Sequence[Dialogue]) -> list[EncodedDialogue | DialogueRefusedError]:
        """Encode many dialogues; in place of one that ``encode`` would refuse stands the error."""
        encoded: list[EncodedDialogue | DialogueRefusedError] = []
        for start in range(0, len(dialogues), BATCH_DIALOGUES):
            encoded += self._encode_batch(dialogues[start : start + BATCH_DIALOGUES])
        return encoded

    def _encode_batch(self, dialogues: Sequence[Dialogue]) -> list[EncodedDialogue | DialogueRefusedError]:
        outcomes: list[EncodedDialogue | DialogueRefusedError | None] = [None] * len(dialogues)
        segments: list[str] = []
        responses: list[bytes] = []  # [S], empty for the text after the last response
        first_segments = [0]
        for index, dialogue in enumerate(dialogues):
            contents = dialogue.responses
            try:
                pieces = self._template.render(dialogue)
            except DialogueRefusedError as error:
                outcomes[index] = error
                continue
            segments += [piece + content for piece, content in zip(pieces, [*contents, ""], strict=True)]
            responses += [content.encode() for content in contents]
            responses.append(b"")
            first_segments.append(len(segments))
        segment_ids = self._tokenise(segments)
        batch = _Batch(segment_ids, responses, np.array(first_segments), self._bytes.lengths, self._bytes.is_special)
        row = 0
        for index, dialogue in enumerate(dialogues):
            if outcomes[index] is not None:
                continue
            fault = self._fault(batch, range(first_segments[row], first_segments[row + 1] - 1))
            cut = None if fault else batch.cut(row, dialogue, self._max_length_tokens)
            too_long = f"no response begins within `max_length_tokens` ({self._max_length_tokens}); raise it"
            outcomes[index] = cut or self._refusal(dialogue, fault or too_long)
            row += 1
        return outcomes  # type: ignore[return-value]  # every place is filled by now

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        backend = self._tokenizer.backend_tokenizer
        # A tokenizer.json may carry both settings for another purpose.
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _fault(self, batch: _Batch, segments: range) -> str | None:
        """Say what is wrong with the tokens of a dialogue's responses, if anything."""
        values = self._bytes.values
        for number, segment in enumerate(segments, start=1):
            tokens = batch.segment_ids[segment][batch.template_tokens[segment] :]
            special = next((token for token in tokens if batch.is_special[token]), None)
            if special is not None:
                if values[special] not in batch.responses[segment]:
                    return f"response {number} contains characters for which the tokenizer has no token"
                text = values[special].decode(errors="replace")
                return f"response {number} contains {text!r}, the text of a special token"
            if not b"".join([values[token] for token in tokens]).endswith(batch.responses[segment]):
                return (
                    f"the tokenizer changes the text of response {number}, so its tokens cannot be placed in the "
                    "response's bytes"
                )
        return None

    def _refusal(self, dialogue: Dialogue, reason: str) -> DialogueRefusedError:
        return DialogueRefusedError(f"Dialogue {dialogue.id}, model {self._model_name!r}: {reason}.")


class _Batch:
    """The tokens of some dialogues in flat arrays, with the bytes they cover.

    Parameters
    ----------
    segment_ids : list of list of int [S]
    responses : list of bytes [S]
    first_segments : int64 [dialogues + 1]
    lengths : int32 [V]
        Bytes of each token of the vocabulary.
    is_special : bool [V]
    """

    def __init__(
        self,
        segment_ids: list[list[int]],
        responses: list[bytes],
        first_segments: np.ndarray,
        lengths: np.ndarray,
        is_special: np.ndarray,
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
        in_response_M = (byte_end_M > 0) & (response_bytes_S[segment_M] > 0)
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
        segment = segment_M[label]
        is_end = is_end_M[label]
        self.first_tokens = first_tokens
        # A label at a dialogue's very first token would have no position in front of it.
        self.place = (label - first_tokens[dialogue_of_S[segment]]).astype(np.int32)
        self.is_end = is_end
        self.turn = (segment - is_end - first_segments[dialogue_of_S[segment]]).astype(np.int32)
        length_before = response_bytes_S[segment - is_end]
        self.byte_end = np.where(is_end, length_before, byte_end_M[label]).astype(np.int32)
        self.byte_start = np.where(is_end, length_before, byte_end_M[label] - length_M[label]).astype(np.int32)
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
