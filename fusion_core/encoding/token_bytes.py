"""The exact bytes behind every token of any fast tokenizer, read from its own model and decoder.

Legend: V vocabulary, T tokens of one text.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from fusion_core.encoding.changed_text import encode_with_offsets, ends_by_offsets, spells_normalised
from fusion_core.errors import DialogueRefusedError, TokenizerError

BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
# Decoder steps that act on the whole text, or only on its ends, and so change no token's bytes.
TEXT_STEPS = frozenset({"Fuse", "Strip"})


@dataclass(frozen=True)
class TokenBytes:
    """What each token of one tokenizer stands for, in bytes.

    Parameters
    ----------
    values : list of bytes [V]
        Bytes of each token as they stand inside a text, its word-start space included; special and other added
        tokens have the UTF-8 bytes of their text; ids that no token uses have none.
    is_special : bool [V]
        Control tokens, which never come from ordinary text.
    is_byte_fallback : bool [V]
        Tokens such as ``<0x0A>`` that spell one byte where no other token fits.
    digest : str
        SHA-256 of the above: two tokenizers with one digest give every id the same meaning.
    """

    values: list[bytes]
    is_special: np.ndarray
    is_byte_fallback: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of bytes of each token, int32 [V]."""
        return np.fromiter(map(len, self.values), np.int32, len(self.values))

    @cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All bytes in one uint8 buffer and int64 [V + 1] offsets into it, for compiled loops."""
        offsets = np.zeros(len(self.values) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return np.frombuffer(b"".join(self.values), np.uint8), offsets


_CACHE: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, TokenBytes]] = weakref.WeakKeyDictionary()


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Derive the bytes of every token from the tokenizer's own model and decoder; kept per tokenizer.

    Parameters
    ----------
    tokenizer : fast tokenizer
        Byte-level BPE, SentencePiece-like BPE or Unigram with or without byte fallback, WordPiece, ``</w>``-BPE.

    Raises
    ------
    TokenizerError
        If it is not a fast tokenizer, or its decoder has a step whose effect on single tokens is not known.
    """
    cached = _CACHE.get(tokenizer)
    if cached is None or cached[0] != len(tokenizer):
        cached = (len(tokenizer), _derive(tokenizer))
        _CACHE[tokenizer] = cached
    return cached[1]


def token_byte_ends(
    tokenizer: PreTrainedTokenizerBase, text: str, token_ids: Sequence[int] | None = None
) -> np.ndarray:
    """Return where each token of a text ends, in UTF-8 bytes from the text's start; the last is the text's length.

    The tokens' own bytes are counted where they spell the text. Where the tokenizer's normaliser changed the text
    (NFKC, lower-casing, collapsed spaces), its offsets into the original text are used.

    Parameters
    ----------
    tokenizer : fast tokenizer
    text : str
    token_ids : sequence of int [T], optional
        Tokens of the text; tokenised here, without special tokens, when absent.

    Returns
    -------
    int64 [T]

    Raises
    ------
    DialogueRefusedError
        If the text has a lone surrogate, the tokens are another text's, or they leave out some of its characters.
    """
    try:
        expected = text.encode()
    except UnicodeEncodeError as error:
        raise DialogueRefusedError(
            f"The text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, which is no "
            "valid Unicode; repair the data."
        ) from error
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if token_ids is None:
        token_ids = encoding["input_ids"]
    known = token_bytes(tokenizer)
    spelled = b"".join(known.values[token] for token in token_ids)
    # A dummy prefix is bytes before the text's start, so ends are counted from the end.
    lead = len(spelled) - len(expected)
    if lead >= 0 and spelled[lead:] == expected and not spelled[:lead].strip(b" "):
        ends = np.cumsum(known.lengths[np.asarray(token_ids, np.int64)], dtype=np.int64) - lead
        return np.maximum(ends, 0)
    if list(token_ids) != list(encoding["input_ids"]):
        raise DialogueRefusedError(
            f"{len(token_ids)} given tokens spell {len(spelled)} bytes, not the text's {len(expected)} bytes; give the "
            "tokens of this text."
        )
    # A special token among them (an unknown word) does not spell what it covers.
    covered = known.is_special[np.asarray(token_ids, np.int64)].any()
    if not covered and not spells_normalised(tokenizer.backend_tokenizer, text, spelled):
        raise DialogueRefusedError(
            f"The tokenizer leaves out characters of a text of {len(expected)} bytes, so its tokens cannot be placed; "
            "this dialogue is left out for this model."
        )
    offsets = encode_with_offsets(tokenizer.backend_tokenizer, text).offsets
    return ends_by_offsets(text, [known.values[token] for token in token_ids], offsets)


def _derive(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; convert it so that a tokenizer.json describes it."
        )
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    has_byte_tokens = _has_byte_tokens(description)
    to_bytes = _token_decoder(description, has_byte_tokens)
    vocabulary = tokenizer.get_vocab()
    size = max(len(tokenizer), 1 + max(vocabulary.values(), default=-1))
    values = [b""] * size
    is_special, is_byte_fallback = np.zeros(size, bool), np.zeros(size, bool)
    for token, index in vocabulary.items():
        values[index] = to_bytes(token)
        is_byte_fallback[index] = has_byte_tokens and BYTE_TOKEN.match(token) is not None
    for index, added in tokenizer.added_tokens_decoder.items():
        # Added tokens are matched on the text itself, before the model and its alphabet.
        values[index] = added.content.encode()
        is_special[index] = added.special
        is_byte_fallback[index] = False
    for index in tokenizer.all_special_ids:
        is_special[index] = True
    digest = hashlib.sha256(is_special.tobytes())
    for value in values:
        digest.update(len(value).to_bytes(4, "little") + value)
    return TokenBytes(values, is_special, is_byte_fallback, digest.hexdigest())


def _has_byte_tokens(description: dict[str, Any]) -> bool:
    steps = _flatten(description["decoder"], "decoders")
    return bool(description["model"].get("byte_fallback")) or any(step["type"] == "ByteFallback" for step in steps)


def _token_decoder(description: dict[str, Any], has_byte_tokens: bool) -> Callable[[str], bytes]:
    """Compose the steps of the decoder that act on single tokens."""
    steps = _flatten(description["decoder"], "decoders")
    kinds = {step["type"] for step in steps}
    before = _flatten(description["pre_tokenizer"], "pretokenizers") + _flatten(
        description["normalizer"], "normalizers"
    )
    if "ByteLevel" in kinds or (not steps and any(step["type"] == "ByteLevel" for step in before)):
        return _byte_level
    if not steps:
        steps = [step for step in before if step["type"] == "Metaspace"]
        prefix = description["model"].get("continuing_subword_prefix")
        if prefix:
            steps.append({"type": "WordPiece", "prefix": prefix})
    text_steps: list[Callable[[str], str]] = []
    for step in steps:
        if step["type"] in TEXT_STEPS or step["type"] == "ByteFallback":
            continue
        text_steps.append(_text_step(step))

    def to_bytes(token: str) -> bytes:
        match = BYTE_TOKEN.match(token) if has_byte_tokens else None
        if match:
            return bytes([int(match.group(1), 16)])
        for apply in text_steps:
            token = apply(token)
        return token.encode()

    return to_bytes


def _text_step(step: dict[str, Any]) -> Callable[[str], str]:
    kind = step["type"]
    if kind == "Replace":
        pattern, content = step["pattern"], step["content"]
        if "String" in pattern:
            return lambda token: token.replace(pattern["String"], content)
        compiled = re.compile(pattern["Regex"])
        return lambda token: compiled.sub(lambda _: content, token)
    if kind == "Metaspace":
        return lambda token: token.replace(step["replacement"], " ")
    if kind == "WordPiece":
        prefix = step["prefix"]
        return lambda token: token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
    if kind == "BPEDecoder":
        suffix = step["suffix"]
        return lambda token: f"{token.removesuffix(suffix)} " if token.endswith(suffix) else token
    raise TokenizerError(
        f"The tokenizer's decoder has a step {kind!r}, whose effect on the bytes of one token is not known; use a "
        "tokenizer with a ByteLevel, Metaspace, Replace, ByteFallback, WordPiece or BPEDecoder decoder."
    )


def _flatten(step: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for child in step[children] for inner in _flatten(child, children)]
    return [step]


def _byte_level_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([BYTE_LEVEL_ALPHABET[character] for character in token])
    except KeyError:
        # As the decoder does it: a piece outside the byte alphabet stands for its own text.
        return token.encode()
