"""The paper's position alignment: dynamic time warping over the edit distances of token texts.

Legend: N pivot tokens, M source tokens, U distinct token texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from fusion_core.alignment.compiled import compiled

WORD_START_MARKS = str.maketrans("", "", "▁Ġ")
UNREACHED = np.int64(1) << 60
# Columns to each side of the cheapest cell that the first guess at a path may use.
HALF_WINDOW = 24


def align_by_dtw(pivot_tokens: Sequence[str], source_tokens: Sequence[str]) -> list[list[int]]:
    """Return, for each pivot token, the source tokens that dynamic time warping matches to it, in order.

    Parameters
    ----------
    pivot_tokens : sequence of str [N]
        Token texts; word-start marks (``▁``, ``Ġ``) are removed before they are compared.
    source_tokens : sequence of str [M]

    Returns
    -------
    list of lists of int [N]
        Empty lists where either side has no tokens.

    Notes
    -----
    The cost of a match is the Levenshtein distance; the path minimises the sum over its cells. Among equally good
    predecessors the diagonal is taken, then left (the source token kept), then up. Cells whose cost, together with the
    least that the remaining tokens can cost, exceeds that of some known path lie on no best path and are not computed:
    the result is that of the full table. FuseLLM's token alignment, arXiv 2401.10491, section 3.2.
    """
    matches: list[list[int]] = [[] for _ in pivot_tokens]
    if not pivot_tokens or not source_tokens:
        return matches
    pivot_texts, pivot_index = _distinct(pivot_tokens)
    source_texts, source_index = _distinct(source_tokens)
    costs = cdist(source_texts, pivot_texts, scorer=Levenshtein.distance, dtype=np.int32, workers=1)
    path_sources, path_pivots = _best_path(costs, source_index, pivot_index)
    for source, pivot in zip(path_sources.tolist(), path_pivots.tolist(), strict=True):
        matches[pivot].append(source)
    return matches


def _distinct(tokens: Sequence[str]) -> tuple[list[str], np.ndarray]:
    ranks: dict[str, int] = {}
    places = [ranks.setdefault(token, len(ranks)) for token in tokens]
    texts: dict[str, int] = {}
    of_token = [texts.setdefault(token.translate(WORD_START_MARKS), len(texts)) for token in ranks]
    return list(texts), np.array(of_token, np.int64)[places]


@compiled
def _cost_of_some_path(costs, source_index, pivot_index):
    """Cost of the best path within a narrow window that follows the cheapest cell of each row: an upper bound."""
    sources, pivots = len(source_index), len(pivot_index)
    above = np.full(2 * HALF_WINDOW + 1, UNREACHED, np.int64)
    row = np.empty(2 * HALF_WINDOW + 1, np.int64)
    above_start, start = 0, 0
    for source in range(sources):
        left, cheapest = UNREACHED, 0
        row[:] = UNREACHED
        for place in range(2 * HALF_WINDOW + 1):
            pivot = start + place
            if pivot >= pivots:
                break
            best = left
            up = pivot - above_start
            if source == 0 and pivot == 0:
                best = np.int64(0)
            if 0 <= up < len(above) and above[up] < best:
                best = above[up]
            if 0 < up <= len(above) and above[up - 1] < best:
                best = above[up - 1]
            left = UNREACHED if best == UNREACHED else best + costs[source_index[source], pivot_index[pivot]]
            row[place] = left
            if left <= row[cheapest]:
                cheapest = place
        above[:] = row
        above_start = start
        start = max(start, start + cheapest - HALF_WINDOW)
    # The rest of the pivot's tokens, if the window has not come to their end.
    last = min(pivots - above_start, len(above)) - 1
    total = above[last]
    for pivot in range(above_start + last + 1, pivots):
        total += costs[source_index[sources - 1], pivot_index[pivot]]
    return total


@compiled
def _least_remaining(costs, index, axis_is_source):
    """Least cost of all tokens after each one: every token is matched at least once."""
    rows, columns = costs.shape
    distinct = rows if axis_is_source else columns
    least = np.full(distinct, UNREACHED, np.int64)
    for row in range(rows):
        for column in range(columns):
            key = row if axis_is_source else column
            if costs[row, column] < least[key]:
                least[key] = costs[row, column]
    remaining = np.zeros(len(index), np.int64)
    for position in range(len(index) - 2, -1, -1):
        remaining[position] = remaining[position + 1] + least[index[position + 1]]
    return remaining


@compiled
def _best_path(costs, source_index, pivot_index):
    sources, pivots = len(source_index), len(pivot_index)
    bound = _cost_of_some_path(costs, source_index, pivot_index)
    after_source = _least_remaining(costs, source_index, True)
    after_pivot = _least_remaining(costs, pivot_index, False)
    # Row r of the table is kept from column first[r] on, at table[begin[r]:begin[r + 1]].
    first = np.zeros(sources, np.int64)
    begin = np.zeros(sources + 1, np.int64)
    table = np.empty(16 * (sources + pivots), np.int64)
    low, high = 0, -1
    for source in range(sources):
        used = begin[source]
        if used + pivots > len(table):
            larger = np.empty(2 * len(table) + pivots, np.int64)
            larger[:used] = table[:used]
            table = larger
        first[source] = low
        above, above_end = begin[source - 1] - first[source - 1], begin[source]
        left, kept_low, kept_high = UNREACHED, -1, -1
        for pivot in range(low, pivots):
            best = left
            if source > 0:
                up = above + pivot
                if up < above_end and table[up] < best:
                    best = table[up]
                if up - 1 < above_end and pivot > first[source - 1] and table[up - 1] < best:
                    best = table[up - 1]
            elif pivot == 0:
                best = np.int64(0)
            value = UNREACHED
            if best < UNREACHED:
                value = best + costs[source_index[source], pivot_index[pivot]]
                if value + max(after_source[source], after_pivot[pivot]) > bound:
                    value = UNREACHED
            table[used] = value
            used += 1
            left = value
            if value < UNREACHED:
                if kept_low < 0:
                    kept_low = pivot
                kept_high = pivot
            elif pivot > high + 1:
                break
        begin[source + 1] = used
        low, high = kept_low, kept_high
    return _walk_back(table, first, begin, sources, pivots)


@compiled
def _cell(table, first, begin, source, pivot):
    if source < 0 or pivot < first[source]:
        return UNREACHED
    place = begin[source] + pivot - first[source]
    return table[place] if place < begin[source + 1] else UNREACHED


@compiled
def _walk_back(table, first, begin, sources, pivots):
    path_sources = np.empty(sources + pivots, np.int64)
    path_pivots = np.empty(sources + pivots, np.int64)
    source, pivot, place = sources - 1, pivots - 1, sources + pivots
    while True:
        place -= 1
        path_sources[place], path_pivots[place] = source, pivot
        if source == 0 and pivot == 0:
            break
        diagonal = _cell(table, first, begin, source - 1, pivot - 1)
        left = _cell(table, first, begin, source, pivot - 1)
        up = _cell(table, first, begin, source - 1, pivot)
        if diagonal <= left and diagonal <= up:
            source, pivot = source - 1, pivot - 1
        elif left <= up:
            pivot -= 1
        else:
            source -= 1
    return path_sources[place:], path_pivots[place:]
