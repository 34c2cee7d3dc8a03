"""Nearest texts by Levenshtein distance, without ever holding all distances.

Legend: W wanted texts, O offered texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

# Distances held at once, two bytes each.
BLOCK_DISTANCES = 1 << 23


def nearest_texts(wanted: Sequence[str], offered: Sequence[str], workers: int = -1) -> np.ndarray:
    """Return, for each wanted text, the index of the offered text at the smallest Levenshtein distance.

    Parameters
    ----------
    wanted : sequence of str [W]
    offered : sequence of str [O]
        At least one. Of several at the same distance the first is taken.
    workers : int
        Threads; -1 takes all cores.

    Returns
    -------
    int64 [W]

    Notes
    -----
    Two texts differ in length by no more than their distance. So texts are taken by length, and distance d is looked
    for only among offered texts within d of the wanted length, for d = 0, 1, 2 ... until nothing is left to find.
    """
    lengths = np.array([len(text) for text in offered])
    by_length = np.argsort(lengths, kind="stable")
    sorted_lengths = lengths[by_length]
    found = np.full(len(wanted), -1, np.int64)
    wanted_lengths = np.array([len(text) for text in wanted])
    for length in np.unique(wanted_lengths):
        left = np.flatnonzero(wanted_lengths == length)
        distance = 1
        while len(left):
            low, high = np.searchsorted(sorted_lengths, [length - distance, length + distance + 1])
            if high > low:
                # In the caller's order, so that the first of equally near texts is found first.
                near = np.sort(by_length[low:high])
                nearest = _within([wanted[int(i)] for i in left], [offered[int(i)] for i in near], distance, workers)
                found[left] = np.where(nearest >= 0, near[nearest], -1)
                left = left[nearest < 0]
            distance += 1 if distance < 4 else distance
    return found


def _within(wanted: list[str], offered: list[str], distance: int, workers: int) -> np.ndarray:
    """Return the index of the nearest offered text for each wanted one, -1 where none is within the distance."""
    nearest = np.full(len(wanted), -1, np.int64)
    rows = max(1, BLOCK_DISTANCES // len(offered))
    for start in range(0, len(wanted), rows):
        block = cdist(
            wanted[start : start + rows],
            offered,
            scorer=Levenshtein.distance,
            score_cutoff=distance,
            dtype=np.uint16,
            workers=workers,
        )
        index = block.argmin(axis=1)
        smallest = block[np.arange(len(block)), index]
        nearest[start : start + rows] = np.where(smallest <= distance, index, -1)
    return nearest
