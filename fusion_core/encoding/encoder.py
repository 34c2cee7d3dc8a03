"""Dialogues to one model's tokens, with the bytes of the responses that every token covers.

Legend: T tokens of one dialogue, N response positions of one dialogue, M tokens of a batch of dialogues, S segments.

A segment is the template's text and the response that follows it, or the template's text after the last response. Each
is tokenised on its own, so the end of a response is always the end of a token. Where a special token ends the turn,
which is so in nearly all templates, this gives the tokens of the whole text. Bytes are counted backwards from the
response's end, where no word-start space that a tokenizer puts in front can shift them.

The end of a turn is a response position if the first token after the response is a special one. A template that ends
its turns with ordinary text, or with a space before the special token, has no such position: what its model predicts
there is not comparable with another model's end of turn.

A tokenizer may change the text before it cuts it (NFKC, lower case). Responses that its tokens do not spell are placed
by its offsets. What such a model knows is then known of the text as it reads it: its gold tokens stand for the gold
text, everything else it predicts is in its own spelling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from fusion_core.dialogues import Dialogue, Turn
from fusion_core.encoding.changed_text import bytes_before, encode_with_offsets, ends_by_offsets, spells_normalised
from fusion_core.encoding.chat_templates import ChatTemplate
from fusion_core.encoding.encoded_batch import EncodedBatch, EncodedDialogue, Placement
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import DialogueRefusedError

__all__ = ["EncodedDialogue", "Encoder"]

BATCH_DIALOGUES = 256


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
            If the template refuses it, a turn is no valid Unicode, a response contains the text of a special token or
            characters that the tokenizer leaves out, or no response begins within ``max_length_tokens``.
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
                self._check_unicode(dialogue)
                pieces = self._template.render(dialogue)
            except DialogueRefusedError as error:
                outcomes[index] = error
                continue
            segments += [piece + content for piece, content in zip(pieces, [*contents, ""], strict=True)]
            responses += [content.encode() for content in contents]
            responses.append(b"")
            first_segments.append(len(segments))
        segment_ids = self._tokenise(segments)
        changed, lost = self._place_changed(segments, segment_ids, responses)
        batch = EncodedBatch(
            segment_ids, responses, np.array(first_segments), self._bytes.lengths, self._bytes.is_special, changed
        )
        row = 0
        for index, dialogue in enumerate(dialogues):
            if outcomes[index] is not None:
                continue
            fault = self._fault(batch, range(first_segments[row], first_segments[row + 1] - 1), lost)
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

    def _place_changed(
        self, segments: list[str], segment_ids: list[list[int]], responses: list[bytes]
    ) -> tuple[dict[int, Placement], dict[int, str]]:
        """Place the tokens of responses that they do not spell, and say of the others what is wrong."""
        values, backend = self._bytes.values, self._tokenizer.backend_tokenizer
        placed: dict[int, Placement] = {}
        lost: dict[int, str] = {}
        for segment, (ids, response) in enumerate(zip(segment_ids, responses, strict=True)):
            tokens = [values[token] for token in ids]
            spelled = b"".join(tokens)
            if spelled.endswith(response):
                continue
            text, content = segments[segment], response.decode()
            begin = len(text) - len(content)
            encoding = encode_with_offsets(backend, text)
            first = next((token for token, (_, stop) in enumerate(encoding.offsets) if stop > begin), None)
            if first is None or encoding.ids != ids or not spells_normalised(backend, content, spelled):
                lost[segment] = "contains characters that the tokenizer leaves out"
                continue
            try:
                ends = ends_by_offsets(text, tokens, encoding.offsets) - len(text[:begin].encode())
            except DialogueRefusedError:
                lost[segment] = "cannot be placed by the tokenizer's offsets, which run backwards"
                continue
            ends = np.maximum(ends, 0)
            starts = np.concatenate([[0], ends[:-1]])
            starts[first] = -bytes_before(tokens[first], response[: int(ends[first])])
            placed[segment] = Placement(first, starts, ends)
        return placed, lost

    def _fault(self, batch: EncodedBatch, segments: range, lost: dict[int, str]) -> str | None:
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
            if segment in lost:
                return f"response {number} {lost[segment]}"
        return None

    def _check_unicode(self, dialogue: Dialogue) -> None:
        for number, turn in enumerate(dialogue.turns, start=1):
            try:
                turn.content.encode()
            except UnicodeEncodeError as error:
                character = f"U+{ord(turn.content[error.start]):04X}"
                reason = f"turn {number} has a lone surrogate ({character}), which is no valid Unicode; repair the data"
                raise self._refusal(dialogue, reason) from error

    def _refusal(self, dialogue: Dialogue, reason: str) -> DialogueRefusedError:
        return DialogueRefusedError(f"Dialogue {dialogue.id}, model {self._model_name!r}: {reason}.")
