"""Counts of aligned token pairs over a corpus, for the vocabulary map of method ``statistics``.

Legend: V_source, V_pivot vocabularies. Memory is in proportion to the pairs seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from fusion_core.alignment.matching import match_tokens
from fusion_core.alignment.positions import align_spans
from fusion_core.alignment.shared_text import join_responses, place_tokens
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import AlignmentError, DialogueRefusedError

if TYPE_CHECKING:
    from fusion_core.dialogues import Dialogue
    from fusion_core.encoding.encoder import Encoder


def count_aligned_pairs(
    dialogues: Sequence[Dialogue],
    pivot_encoder: Encoder,
    source_encoder: Encoder,
    positions: Literal["bytes", "dtw"] = "bytes",
) -> sparse.csr_matrix:
    """Count how often each source token is aligned with each pivot token over the responses of some dialogues.

    Parameters
    ----------
    dialogues : sequence of Dialogue
    pivot_encoder, source_encoder : Encoder
    positions : {"bytes", "dtw"}
        bytes: tokens that begin at the same byte. dtw: tokens that time warping matches, as in the paper.

    Returns
    -------
    scipy CSR int64 [V_source, V_pivot]
        Ends of turn count with each other.
    """
    _, response_starts = join_responses(dialogues)
    pivot = place_tokens(_encoded(dialogues, pivot_encoder), response_starts)
    source = place_tokens(_encoded(dialogues, source_encoder), response_starts)
    pivot_bytes, source_bytes = token_bytes(pivot_encoder.tokenizer), token_bytes(source_encoder.tokenizer)
    if positions == "bytes":
        rows, bytes_read = align_spans(pivot.starts, pivot.ends, source.starts, source.ends)
        pivot_index = np.flatnonzero((rows >= 0) & (bytes_read == 0))
        source_index = rows[pivot_index]
    else:
        source_index, pivot_index = match_tokens(pivot, source, pivot_bytes, source_bytes)
    shape = (len(source_bytes), len(pivot_bytes))
    ones = np.ones(len(pivot_index), np.int64)
    pairs = (source.labels[source_index], pivot.labels[pivot_index])
    return sparse.csr_matrix(sparse.coo_matrix((ones, pairs), shape=shape))


def add_counts(parts: Iterable[sparse.csr_matrix]) -> sparse.csr_matrix:
    """Add the counts of several shards.

    Raises
    ------
    AlignmentError
        If there are none, or they belong to different vocabularies.
    """
    total: sparse.csr_matrix | None = None
    for part in parts:
        if total is not None and part.shape != total.shape:
            raise AlignmentError(f"Counts of the shapes {total.shape} and {part.shape} belong to different tokenizers.")
        total = part if total is None else total + part
    if total is None:
        raise AlignmentError("There are no counts of aligned pairs to add; count at least one shard.")
    return total


def _encoded(dialogues: Sequence[Dialogue], encoder: Encoder) -> list:
    outcomes = encoder.encode_all(dialogues)
    return [None if isinstance(outcome, DialogueRefusedError) else outcome for outcome in outcomes]
