"""The paper's time warping over whole shards, response by response.

Legend: N pivot tokens, M source tokens.
"""

from __future__ import annotations

import numpy as np

from fusion_core.alignment.shared_text import Spans
from fusion_core.alignment.time_warping import align_by_dtw
from fusion_core.encoding.token_bytes import TokenBytes


def match_tokens(
    pivot: Spans, source: Spans, pivot_bytes: TokenBytes, source_bytes: TokenBytes
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (source row, pivot position) that time warping matches, int64 each, by pivot position.

    Tokens are compared by the text they stand for, so that a byte-level piece equals a SentencePiece one. Ends of turn
    match each other.
    """
    source_rows: list[np.ndarray] = []
    pivot_positions: list[np.ndarray] = []
    pivot_responses, source_responses = _responses(pivot), _responses(source)
    for key, positions in pivot_responses.items():
        rows = source_responses.get(key)
        if rows is None:
            continue
        pivot_end, source_end = pivot.is_end_of_turn[positions], source.is_end_of_turn[rows]
        ordinary, ordinary_rows = positions[~pivot_end], rows[~source_end]
        matches = align_by_dtw(
            _texts(pivot.labels[ordinary], pivot_bytes), _texts(source.labels[ordinary_rows], source_bytes)
        )
        for position, matched in zip(ordinary, matches, strict=True):
            source_rows.append(ordinary_rows[matched])
            pivot_positions.append(np.full(len(matched), position))
        if pivot_end.any() and source_end.any():
            source_rows.append(rows[source_end])
            pivot_positions.append(positions[pivot_end])
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *source_rows]), np.concatenate([empty, *pivot_positions])


def match_one_to_one(
    pivot: Spans, source: Spans, pivot_bytes: TokenBytes, source_bytes: TokenBytes, vocabulary: np.ndarray
) -> np.ndarray:
    """Return, for each pivot position, the one source row matched to it whose token maps to the pivot's; else -1.

    The condition under which the paper's code takes a source's distribution; int64 [N].
    """
    rows, positions = match_tokens(pivot, source, pivot_bytes, source_bytes)
    alone = np.bincount(positions, minlength=len(pivot.labels))[positions] == 1
    rows, positions = rows[alone], positions[alone]
    same = vocabulary[source.labels[rows]] == pivot.labels[positions]
    chosen = np.full(len(pivot.labels), -1, np.int64)
    chosen[positions[same]] = rows[same]
    return chosen


def _responses(spans: Spans) -> dict[int, np.ndarray]:
    """Group rows by response; a response's key is the same for both models."""
    if not len(spans.labels):
        return {}
    breaks = np.flatnonzero(spans.starts[1:] > spans.ends[:-1]) + 1
    groups = np.split(np.arange(len(spans.labels)), breaks)
    return {int(spans.starts[group[0]]): group for group in groups}


def _texts(labels: np.ndarray, vocabulary: TokenBytes) -> list[str]:
    return [vocabulary.values[token].decode("utf-8", errors="surrogateescape").strip(" ") for token in labels]
