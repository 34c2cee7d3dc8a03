"""Compiled loops over stored bf16 and float32 values: one pass over memory, no converted copy of a tensor.

Shape legend: M models (the pivot, then the targets), T targets, N entries of a tensor.

Everything compiled lives in this one file, because numba's cache on disk does not see changes in other files.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Entries converted at a time: the float32 copies of a chunk, one per model, stay in a core's own cache.
CHUNK = 4096

# Sums may be reordered into vector lanes; NaN and infinity keep their meaning, because the engine looks for them.
REORDER = {"reassoc", "nsz", "contract"}


@njit(nogil=True, cache=True)
def _widen(stored_N, values_N):
    if stored_N.itemsize == 2:
        # bfloat16 is the upper half of a float32.
        bits_N = values_N.view(np.uint32)
        for n in range(values_N.size):
            bits_N[n] = np.uint32(stored_N[n]) << np.uint32(16)
    else:
        for n in range(values_N.size):
            values_N[n] = np.float32(stored_N[n])


@njit(nogil=True, cache=True)
def _narrow(values_N, stored_N):
    if stored_N.itemsize == 2:
        # Round to nearest, ties to even.
        bits_N = values_N.view(np.uint32)
        for n in range(values_N.size):
            bits = bits_N[n]
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            stored_N[n] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    else:
        for n in range(values_N.size):
            stored_N[n] = values_N[n]


@njit(nogil=True, cache=True, fastmath=REORDER)
def _subtract(values_N, pivot_N):
    absolute = np.float32(0)
    for n in range(values_N.size):
        delta = values_N[n] - pivot_N[n]
        values_N[n] = delta
        absolute += abs(delta)
    return absolute


@njit(nogil=True, cache=True, fastmath=REORDER)
def _dot(left_N, right_N):
    total = np.float32(0)
    for n in range(left_N.size):
        total += left_N[n] * right_N[n]
    return total


@njit(nogil=True, cache=True)
def _count_changed(left_N, right_N):
    changed = np.uint32(0)
    for n in range(left_N.size):
        changed += np.uint32(left_N[n] != right_N[n])
    return changed


@njit(nogil=True, cache=True, fastmath=REORDER)
def _accumulate(sum_N, values_N, weight):
    for n in range(sum_N.size):
        sum_N[n] += weight * values_N[n]


@njit(
    [f"void({code}[:, ::1], i8, i8, b1, f4[:, ::1], f8[:, ::1], f8[::1], i8[::1])" for code in ("u2", "f4")],
    nogil=True,
    cache=True,
)
def add_statistics(stored_MN, start, stop, with_pivot, scratch_MN, gram_MM, absolute_T, changed_T):
    """Add the statistics of the entries ``start`` to ``stop`` to ``gram_MM``, ``absolute_T`` and ``changed_T``.

    Row and column 0 of ``gram_MM`` are products with the pivot itself, filled only ``with_pivot``; the others are
    products of deltas. ``scratch_MN`` has at least CHUNK columns.
    """
    models = stored_MN.shape[0]
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        pivot_N = scratch_MN[0][: last - first]
        _widen(stored_MN[0][first:last], pivot_N)
        if with_pivot:
            gram_MM[0, 0] += _dot(pivot_N, pivot_N)
        for m in range(1, models):
            delta_N = scratch_MN[m][: last - first]
            _widen(stored_MN[m][first:last], delta_N)
            absolute_T[m - 1] += _subtract(delta_N, pivot_N)
            changed_T[m - 1] += _count_changed(stored_MN[m][first:last], stored_MN[0][first:last])
            for other in range(0 if with_pivot else 1, m + 1):
                product = _dot(delta_N, scratch_MN[other][: last - first])
                gram_MM[m, other] += product
                if other != m:
                    gram_MM[other, m] += product


@njit(
    [f"void({code}[:, ::1], i8, i8, f4[::1], f4[:, ::1], {code}[::1])" for code in ("u2", "f4")],
    nogil=True,
    cache=True,
)
def weighted_sum(stored_MN, start, stop, coefficients_M, scratch_MN, merged_N):
    """Write the sum of coefficient times model over the entries ``start`` to ``stop`` into ``merged_N``."""
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        sum_N = scratch_MN[0][: last - first]
        values_N = scratch_MN[1][: last - first]
        sum_N[:] = 0
        for m in range(stored_MN.shape[0]):
            if coefficients_M[m] != 0:
                _widen(stored_MN[m][first:last], values_N)
                _accumulate(sum_N, values_N, coefficients_M[m])
        _narrow(sum_N, merged_N[first - start : last - start])


@njit("UniTuple(i8, 4)(f4[::1], f4, f4, f4[::1])", nogil=True, cache=True)
def count_bracket(scores_N, low, high, inside_N):
    """Count scores above ``high``, at ``high``, at ``low`` and between; the last are written into ``inside_N``.

    ``inside_N`` needs room for one more than all scores.
    """
    above = 0
    at_high = 0
    at_low = 0
    inside = 0
    for n in range(scores_N.size):
        score = scores_N[n]
        above += score > high
        at_high += score == high
        at_low += score == low
    if low == high:
        at_low = 0
    for n in range(scores_N.size):
        # Always written, rarely kept: a branch here would be mispredicted as often as it is taken.
        inside_N[inside] = scores_N[n]
        inside += (scores_N[n] > low) & (scores_N[n] < high)
    return above, at_high, at_low, inside


@njit("f4[::1](u8, i8, i8, f8)", nogil=True, cache=True)
def random_mask(key, start, count, share):
    """Draw which of the entries from ``start`` on are kept, each with probability ``share``; SplitMix64 of the place.

    Returns ones and zeros, float32.
    A draw depends on ``key`` and the entry's place alone, so that it is the same however the entries are cut up.
    """
    mask_N = np.empty(count, dtype=np.float32)
    bound = np.uint64(share * 2.0**53)
    for n in range(count):
        bits = key + np.uint64(start + n + 1) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
        mask_N[n] = np.float32((bits >> np.uint64(11)) < bound)
    return mask_N
