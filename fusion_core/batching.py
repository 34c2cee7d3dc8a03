"""Batches by token budget: dialogues of like length together, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW_DIALOGUES = 4096
# A batch that has a quarter of its tokens takes no sequence that makes more than 4 % of it padding.
LARGEST_PADDING_SHARE = 0.04
ENOUGH_OF_BUDGET = 0.25
# Of these sizes, in parts of the largest, are batches of one length where few shapes are wanted.
SIZES_OF_A_LENGTH = 8


def token_batches(
    lengths: Sequence[int] | np.ndarray,
    batch_tokens: int,
    *,
    window: int = WINDOW_DIALOGUES,
    packed: bool = False,
    few_shapes: bool = False,
) -> list[np.ndarray]:
    """Group sequences so that each batch, padded to its longest, has at most `batch_tokens` tokens.

    Parameters
    ----------
    lengths : sequence of int, or integer array
        Tokens of each sequence; empty ones are in no batch.
    batch_tokens : int
        Longest sequence times number of sequences of a batch, at most; a longer sequence is a batch of its own.
    window : int
        Sequences are sorted by length inside windows of as many, so that a stream need not be held as a whole.
    packed : bool
        Sequences of a batch stand one after the other instead: their sum counts, and nothing is padding.
    few_shapes : bool
        Lengths are rounded as by `few_lengths`, and of each length come batches of few sizes.

    Returns
    -------
    list of int64 arrays
        Indices into ``lengths``, the longest sequences of a window first: memory runs out early or not at all.
    """
    sizes = few_lengths(lengths) if few_shapes else np.asarray(lengths, dtype=np.int64)
    batches: list[np.ndarray] = []
    for start in range(0, len(sizes), window):
        part = sizes[start : start + window]
        order = start + np.argsort(-part, kind="stable")
        order = order[sizes[order] > 0]
        while len(order):
            count = _packed_size(sizes[order], batch_tokens) if packed else _batch_size(sizes[order], batch_tokens)
            if few_shapes:
                step = max(1, batch_tokens // int(sizes[order[0]]) // SIZES_OF_A_LENGTH)
                count -= count % step if count > step else 0
            batches.append(order[:count])
            order = order[count:]
    return batches


def _batch_size(descending: np.ndarray, batch_tokens: int) -> int:
    longest = int(descending[0])
    fitting = descending[: max(1, batch_tokens // longest)]
    read = longest * np.arange(1, len(fitting) + 1)
    too_padded = 1 - np.cumsum(fitting) / read > LARGEST_PADDING_SHARE
    too_padded &= read - longest >= batch_tokens * ENOUGH_OF_BUDGET
    return int(too_padded.argmax()) if too_padded.any() else len(fitting)


def _packed_size(sizes: np.ndarray, batch_tokens: int) -> int:
    return max(1, int(np.searchsorted(np.cumsum(sizes), batch_tokens, side="right")))


def few_lengths(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Round lengths up to one of 32 between each power of two and the next, so by at most a 32nd.

    A processor's library of matrix products compiles code for every shape that it meets, and keeps up to half a
    megabyte of it: where the shapes of batches are left to chance, memory grows with the number of batches.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    steps = 1 << np.maximum(0, np.frexp(sizes)[1].astype(np.int64) - 6)
    return -(-sizes // steps) * steps


def pad_right(sequences: Sequence[np.ndarray], fill: int, length: int | None = None) -> np.ndarray:
    """Stack sequences of different lengths as int64 [sequences, longest or `length`], filled up on the right."""
    padded = np.full((len(sequences), length or max(map(len, sequences))), fill, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
