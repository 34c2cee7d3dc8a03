"""Gives a model another tokenizer: each new token starts as the mean of the old embeddings of its text.

Legend: V old vocabulary, W new vocabulary, H hidden size.
"""

from collections.abc import Sequence

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from deployments.demo.chat_tokenizers import TEXT_END


def byte_alphabet() -> dict[str, int]:
    """The byte behind each character of the byte-level alphabet: printable bytes are themselves, others follow."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    assert alphabet.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """The bytes each token of a byte-level vocabulary stands for, None for special tokens."""
    alphabet, special = byte_alphabet(), tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [None if i in special else bytes(alphabet[c] for c in token) for i, token in enumerate(tokens)]


def mean_of_pieces(
    embedding: Tensor,
    old: PreTrainedTokenizerFast,
    new: PreTrainedTokenizerFast,
    texts: Sequence[bytes | None] | None = None,
) -> Tensor:
    """The embedding matrix of the new vocabulary, from the old one alone.

    A token's bytes are written in the old vocabulary and the rows of those pieces averaged. Bytes that are no text
    by themselves (the middle of a character) are written byte by byte. A special token takes the row of the old
    special token of its name, or that of the end-of-text token, as does a byte that the old vocabulary lacks.

    Parameters
    ----------
    embedding
        float32 [V, H], the old rows.
    old, new
        Tokenizers of V and W entries; the old one is byte-level.
    texts
        Bytes of the new tokens, None for special ones [W]; only needed where the new tokenizer is not byte-level.

    Returns
    -------
    Tensor
        float32 [W, H].
    """
    names = new.convert_ids_to_tokens(list(range(len(new))))
    vocabulary = old.get_vocab()
    fallback = vocabulary[TEXT_END]
    characters = {byte: character for character, byte in byte_alphabet().items()}

    def pieces(token: int, text: bytes | None) -> list[int]:
        if text is None:
            return [vocabulary.get(names[token], fallback)]
        try:
            return old.encode(text.decode("utf-8"), add_special_tokens=False)
        except UnicodeDecodeError:
            return [vocabulary.get(characters[byte], fallback) for byte in text]

    rows = [pieces(token, text) for token, text in enumerate(token_bytes(new) if texts is None else texts)]
    starts = torch.tensor([0] + [len(row) for row in rows[:-1]]).cumsum(0)
    flat = torch.tensor([piece for row in rows for piece in row])
    return torch.nn.functional.embedding_bag(flat, embedding, starts, mode="mean")
