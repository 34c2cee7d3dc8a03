"""Where tokens stand in a text that their tokenizer changed before it was cut (NFKC, lower case, collapsed spaces).

Legend: T tokens of one text.

The tokenizer's offsets say which characters each token came from. They are exact between whole characters only, so
tokens whose offsets overlap form a group: a group that spells its characters is placed by its bytes, as in any other
text. In a group that does not, a token ends where its offsets do; of several that came from one character (``1``,
``⁄``, ``2`` from ``½``) the last covers it, and those before it cover nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from tokenizers import Encoding, Tokenizer, models, normalizers

from fusion_core.errors import DialogueRefusedError

WORD_START_MARK = "▁"
# Steps that change what a text says; the others only prepare it for the model (word-start marks).
CHANGING_STEPS = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Precompiled", "Nmt"}
)


def encode_with_offsets(backend: Tokenizer, text: str) -> Encoding:
    """Tokenise a text with offsets that hold every character of its tokens."""
    kept = backend.post_processor
    # A byte-level one may trim spaces off the offsets.
    backend.post_processor = None  # type: ignore[assignment]  # the setter takes None
    try:
        return backend.encode(text, add_special_tokens=False)
    finally:
        backend.post_processor = kept


def changing_normaliser(backend: Tokenizer) -> normalizers.Normalizer | None:
    """Return the part of a tokenizer's normaliser that changes what a text says, if there is one."""
    if backend.normalizer is None:
        return None
    # Without its vocabulary a tokenizer is described in a moment.
    bare = Tokenizer(models.BPE())
    bare.normalizer = backend.normalizer
    description = json.loads(bare.to_str())
    steps = description["normalizer"]
    kept = [step for step in steps.get("normalizers", [steps]) if step["type"] in CHANGING_STEPS]
    if not kept:
        return None
    description["normalizer"] = {"type": "Sequence", "normalizers": kept}
    return Tokenizer.from_str(json.dumps(description)).normalizer


def spells_normalised(backend: Tokenizer, text: str, spelled: bytes) -> bool:
    """Tell whether tokens end with what the tokenizer's normaliser makes of a text, spaces aside.

    Where they do not, characters got lost on the way to the tokens, and nothing can be said of them.
    """
    normalised = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    return _without_spaces(spelled.decode(errors="replace")).endswith(_without_spaces(normalised))


def ends_by_offsets(text: str, tokens: Sequence[bytes], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return where each token ends in a text's UTF-8 bytes; the last is the text's length.

    Parameters
    ----------
    text : str
    tokens : sequence of bytes [T]
        What each token stands for.
    offsets : sequence of (start, stop) [T]
        Characters of the text that each token came from, in order. Characters of no token belong to the token before
        them (a combining mark that was joined or dropped), from the first space on to the token after them.

    Returns
    -------
    int64 [T], never falling

    Raises
    ------
    DialogueRefusedError
        If there are no tokens, or the offsets run backwards.
    """
    starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
    if not stops or any(later < earlier for earlier, later in pairwise(stops)):
        raise DialogueRefusedError(
            f"The tokenizer's offsets over a text of {len(text)} characters are empty or run backwards, so its tokens "
            "cannot be placed; this dialogue is left out for this model."
        )
    ends = np.empty(len(stops), np.int64)
    byte, character, first = 0, 0, 0
    while first < len(stops):
        after = first + 1
        while after < len(stops) and starts[after] < stops[after - 1]:
            after += 1
        following = starts[after] if after < len(stops) else len(text)
        stop = max(stops[after - 1], character)
        while stop < following and (after == len(stops) or not text[stop].isspace()):
            stop += 1
        covered = text[character:stop].encode()
        if b"".join(tokens[first:after]) == covered:
            place = byte
            for token in range(first, after):
                place += len(tokens[token])
                ends[token] = place
        else:
            place = byte
            for token in range(first, after - 1):
                if stops[token] < stops[token + 1] and stops[token] > character:
                    place = byte + len(text[character : stops[token]].encode())
                ends[token] = place
            ends[after - 1] = byte + len(covered)
        byte, character, first = byte + len(covered), stop, after
    return ends


def bytes_before(token: bytes, covered: bytes) -> int:
    """Return how many bytes of a response's first token stand before the response, of which it covers some bytes.

    Where the token does not spell them, its word-start space alone stands before: no response begins with a space.
    """
    if covered and token.endswith(covered):
        return len(token) - len(covered)
    return len(token) - len(token.lstrip(b" "))


def _without_spaces(text: str) -> str:
    return "".join(text.replace(WORD_START_MARK, " ").split())
