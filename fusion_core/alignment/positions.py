"""Which source distribution speaks at which pivot position, by byte offsets over the same text.

Legend: N pivot tokens, M source tokens, D dialogues. All offsets are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion_core.alignment.compiled import compiled
from fusion_core.alignment.time_warping import align_by_dtw
from fusion_core.errors import AlignmentError

__all__ = ["BytePositions", "align_by_bytes", "align_by_dtw", "align_spans"]


@dataclass(frozen=True)
class BytePositions:
    """The source token in which each pivot token begins.

    Parameters
    ----------
    source_rows : int64 [N]
        Row of that source token, whose distribution applies; -1 where the source has not read the text.
    bytes_read : int32 [N]
        Bytes of the source token before the pivot's boundary: 0 where both have a boundary, else the source's
        distribution must be conditioned on that many bytes.
    row_splits : int64 [D + 1]
        Positions of dialogue d are ``row_splits[d]:row_splits[d + 1]``.
    """

    source_rows: np.ndarray
    bytes_read: np.ndarray
    row_splits: np.ndarray

    @property
    def at_boundary(self) -> np.ndarray:
        """Positions where pivot and source share the boundary, bool [N]."""
        return (self.source_rows >= 0) & (self.bytes_read == 0)

    def __len__(self) -> int:
        return len(self.source_rows)


def align_by_bytes(pivot_ends: np.ndarray, source_ends: np.ndarray) -> BytePositions:
    """Align two tokenizations of one text by where their tokens end.

    Parameters
    ----------
    pivot_ends : integers [N]
        Byte at which each pivot token ends, never falling; a token of no bytes (an end of turn) repeats the last.
    source_ends : integers [M]
        The same for the source's tokens. The two may be cut at different lengths.

    Returns
    -------
    BytePositions
        Of one dialogue. Linear in N + M.

    Raises
    ------
    AlignmentError
        If the ends fall anywhere or begin below zero.
    """
    pivot_starts, pivot_stops = _starts_and_ends("pivot", pivot_ends)
    source_starts, source_stops = _starts_and_ends("source", source_ends)
    rows, bytes_read = align_spans(pivot_starts, pivot_stops, source_starts, source_stops)
    return BytePositions(rows, bytes_read, np.array([0, len(rows)], np.int64))


@compiled
def align_spans(pivot_starts, pivot_ends, source_starts, source_ends):
    """Return source row and bytes read for each pivot token; all arrays int64 and never falling."""
    rows = np.full(len(pivot_starts), -1, np.int64)
    bytes_read = np.zeros(len(pivot_starts), np.int32)
    row = -1
    for position in range(len(pivot_starts)):
        start = pivot_starts[position]
        while row + 1 < len(source_starts) and source_starts[row + 1] <= start:
            row += 1
        if row < 0:
            continue
        matched = row
        if pivot_ends[position] == start:
            # A token without bytes of its own (a word-start mark alone) speaks before all that begins here.
            while matched > 0 and source_starts[matched - 1] == start:
                matched -= 1
        if start < source_ends[matched] or start == source_starts[matched]:
            rows[position] = matched
            bytes_read[position] = start - source_starts[matched]
    return rows, bytes_read


def _starts_and_ends(name: str, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stops = np.asarray(ends, np.int64)
    starts = np.concatenate([np.zeros(min(1, len(stops)), np.int64), stops[:-1]])
    falling = np.flatnonzero(stops < starts)
    if len(falling):
        raise AlignmentError(
            f"The {name}'s token ends must never fall; token {falling[0]} ends at byte {stops[falling[0]]}, after "
            f"byte {starts[falling[0]]}."
        )
    return starts, stops
