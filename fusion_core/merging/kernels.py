"""Compiled loops over stored bf16, fp16 and float32 values: one pass over memory, no converted copy of a tensor.

Shape legend: M models (the pivot, then the targets), T targets, N entries of a part of a tensor.

numpy and numba know neither bf16 nor fast fp16, so that both come as their bits: uint16 is bf16, int16 is fp16.
Everything compiled lives in this one file, because numba's cache on disk does not see changes in other files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types

# Entries taken at a time: their float32 values, a row per model, stay in a core's own cache.
CHUNK = 4096

# Callers do not pass the typing context, which numba's own types do not know.
intrinsic: Callable[..., Any] = extending.intrinsic

# Between these, sums of a chunk's squares and products lose nothing that counts in float32; others are summed again in
# float64, so that neither tiny nor huge deltas count as none or as infinite.
SMALLEST_SQUARES = np.float64(2.0**-110)
LARGEST_SQUARES = np.float64(2.0**126)

# Sums may be reordered into vector lanes; NaN and infinity keep their meaning, because the engine looks for them.
REORDER = {"reassoc", "nsz", "contract"}


@intrinsic
def _widen(typing_context, stored):
    """Turn a stored value into float32."""

    def generate(context, builder, signature, arguments):
        if stored == types.uint16:
            # bfloat16 is the upper half of a float32.
            bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(bits, ir.FloatType())
        if stored == types.int16:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        return arguments[0]

    return types.float32(stored), generate


@intrinsic
def _narrow(typing_context, value, like):
    """Round a float32 to the stored type of ``like``: to nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        value = arguments[0]
        if like.dtype == types.uint16:
            word = ir.IntType(32)
            bits = builder.bitcast(value, word)
            odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
            return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))
        if like.dtype == types.int16:
            return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
        return builder.fpext(value, ir.DoubleType()) if like.dtype == types.float64 else value

    return like.dtype(value, like), generate


@njit(nogil=True, cache=True)
def _load(stored_N, values_N):
    for n in range(values_N.size):
        values_N[n] = _widen(stored_N[n])


@njit(nogil=True, cache=True, fastmath=REORDER)
def _subtract(stored_N, pivot_N, delta_N):
    """Fill ``delta_N``; return the sums of its absolute values and squares and the number of those that are not 0."""
    absolute = np.float32(0)
    square = np.float32(0)
    # A float32 counts a chunk exactly; an integer would be counted in 64 bits, half as fast.
    changed = np.float32(0)
    for n in range(delta_N.size):
        delta = _widen(stored_N[n]) - pivot_N[n]
        delta_N[n] = delta
        absolute += abs(delta)
        square += delta * delta
        changed += np.float32(1) if delta != 0 else np.float32(0)
    return absolute, square, changed


@njit(nogil=True, cache=True, fastmath=REORDER)
def _dot(left_N, right_N):
    total = np.float32(0)
    for n in range(left_N.size):
        total += left_N[n] * right_N[n]
    return total


@njit(nogil=True, cache=True, fastmath=REORDER)
def _dot_in_float64(left_N, right_N):
    total = np.float64(0)
    for n in range(left_N.size):
        total += np.float64(left_N[n]) * np.float64(right_N[n])
    return total


@njit(nogil=True, cache=True, fastmath=REORDER)
def _absolute_in_float64(values_N):
    total = np.float64(0)
    for n in range(values_N.size):
        total += abs(np.float64(values_N[n]))
    return total


@njit(nogil=True, cache=True)
def _fits_float32(square):
    # NaN does not.
    return SMALLEST_SQUARES <= square <= LARGEST_SQUARES


@njit(nogil=True, cache=True, fastmath=REORDER)
def _begin_sum(stored_N, weight, sum_N):
    for n in range(sum_N.size):
        sum_N[n] = weight * _widen(stored_N[n])


@njit(nogil=True, cache=True, fastmath=REORDER)
def _add_to_sum(stored_N, weight, sum_N):
    for n in range(sum_N.size):
        sum_N[n] += weight * _widen(stored_N[n])


@njit(nogil=True, cache=True)
def _store(values_N, merged_N):
    for n in range(values_N.size):
        merged_N[n] = _narrow(values_N[n], merged_N)


@njit(nogil=True, cache=True)
def _add_statistics(stored_MN, first, last, with_pivot, scratch_MN, squares_M, gram_MM, absolute_T, changed_T):
    pivot_N = scratch_MN[0][: last - first]
    _load(stored_MN[0][first:last], pivot_N)
    squares_M[0] = 0
    if with_pivot:
        square = np.float64(_dot(pivot_N, pivot_N))
        squares_M[0] = square if _fits_float32(square) else _dot_in_float64(pivot_N, pivot_N)
        gram_MM[0, 0] += squares_M[0]
    for m in range(1, len(stored_MN)):
        delta_N = scratch_MN[m][: last - first]
        absolute, square, changed = _subtract(stored_MN[m][first:last], pivot_N, delta_N)
        squares_M[m] = square
        if changed != 0 and not _fits_float32(np.float64(square)):
            squares_M[m] = _dot_in_float64(delta_N, delta_N)
            absolute_T[m - 1] += _absolute_in_float64(delta_N)
        else:
            absolute_T[m - 1] += absolute
        changed_T[m - 1] += np.int64(changed)
        gram_MM[m, m] += squares_M[m]
        for other in range(m):
            if squares_M[m] == 0 or squares_M[other] == 0:
                continue
            other_N = scratch_MN[other][: last - first]
            if _fits_float32(squares_M[m]) and _fits_float32(squares_M[other]):
                product = np.float64(_dot(delta_N, other_N))
            else:
                product = _dot_in_float64(delta_N, other_N)
            gram_MM[m, other] += product
            gram_MM[other, m] += product


@njit(nogil=True, cache=True)
def _merge(stored_MN, first, last, coefficients_M, sum_N, merged_N):
    is_begun = False
    for m in range(len(stored_MN)):
        if coefficients_M[m] != 0:
            stored_N = stored_MN[m][first:last]
            if is_begun:
                _add_to_sum(stored_N, coefficients_M[m], sum_N)
            else:
                _begin_sum(stored_N, coefficients_M[m], sum_N)
            is_begun = True
    if not is_begun:
        sum_N[:] = 0
    _store(sum_N, merged_N)


@njit(nogil=True, cache=True)
def pass_over(
    stored_MN, start, stop, scratch_MN, with_sums, with_pivot, gram_MM, absolute_T, changed_T, coefficients_M, merged_N
):  # fmt: skip
    """Read the entries ``start`` to ``stop`` of every model once; add up their deltas, merge them, or both.

    Parameters
    ----------
    stored_MN : ndarray [M, N]
        As stored: uint16 for bf16, int16 for fp16, float32.
    start, stop : int
    scratch_MN : ndarray, float32 [M, CHUNK]
    with_sums : bool
        Whether to add to ``gram_MM``, ``absolute_T`` and ``changed_T``, the fields of DeltaStatistics.
    with_pivot : bool
        Whether row and column 0 of ``gram_MM`` take the products with the pivot's own values.
    coefficients_M : ndarray, float32 [M]
    merged_N : ndarray [stop - start] or [0]
        Takes the sum of coefficient times model, rounded to its own type; not merged where it is empty.
    """
    squares_M = np.zeros(len(stored_MN))
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        if with_sums:
            _add_statistics(stored_MN, first, last, with_pivot, scratch_MN, squares_M, gram_MM, absolute_T, changed_T)
        if merged_N.size:
            part_N = merged_N[first - start : last - start]
            _merge(stored_MN, first, last, coefficients_M, scratch_MN[0][: last - first], part_N)


@njit(nogil=True, cache=True)
def holds(bits_N, mask):
    """Tell whether any of the unsigned integers has all bits of ``mask``, of their type, set."""
    found = False
    for n in range(bits_N.size):
        found |= (bits_N[n] & mask) == mask
    return found


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
