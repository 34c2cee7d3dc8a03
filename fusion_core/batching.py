"""Batches by token budget: dialogues of like length together, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW_DIALOGUES = 4096


def token_batches(lengths: Sequence[int], batch_tokens: int, *, window: int = WINDOW_DIALOGUES) -> list[np.ndarray]:
    """Group sequences so that each batch, padded to its longest, has at most `batch_tokens` tokens.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sequence; empty ones are in no batch.
    batch_tokens : int
        Longest sequence times number of sequences of a batch; a sequence that alone is longer is a batch of its own.
    window : int
        Sequences are sorted by length inside windows of as many, so that a stream need not be held as a whole.

    Returns
    -------
    list of int64 arrays
        Indices into ``lengths``, the longest sequences of a window first: memory runs out early or not at all.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    batches: list[np.ndarray] = []
    for start in range(0, len(sizes), window):
        part = sizes[start : start + window]
        order = start + np.argsort(-part, kind="stable")
        order = order[sizes[order] > 0]
        first = 0
        while first < len(order):
            count = max(1, batch_tokens // int(sizes[order[first]]))
            batches.append(order[first : first + count])
            first += count
    return batches


def pad_right(sequences: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Stack sequences of different lengths as int64 [sequences, longest], filled up on the right."""
    padded = np.full((len(sequences), max(map(len, sequences))), fill, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
