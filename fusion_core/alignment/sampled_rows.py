"""Cutting a row of sampled entries to its width without a bias.

Legend: K entries of a row.

A row that is put together from several sampled ones has more than K entries, each an unbiased estimate of its token's
probability. To keep the K largest would take from the tail what sampling gave it. Instead K are drawn with the least
variance that unbiased weights allow: a threshold t is set such that min(1, mass / t) sums to K; what has more than t
keeps its mass, each other entry stays with probability mass / t and then has the mass t (VarOpt, arXiv 0803.0473).

One bias remains, and no cut makes or mends it: inside a source token a row is divided by the mass that fits there,
which is itself an estimate.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fusion_core.alignment.compiled import compiled


@compiled
def cut_sampled_row(ids, masses, count, width, always, uniform):
    """Cut entries [count] in place to at most `width`, and return how many stay.

    ``always``: token that keeps its mass in any case, or -1; ``uniform`` in [0, 1) decides what is drawn.
    """
    if count <= width:
        return count
    for place in range(1, count):
        token, mass = ids[place], masses[place]
        hole = place
        while hole > 0 and ids[hole - 1] != always and (masses[hole - 1] < mass or token == always):
            ids[hole], masses[hole] = ids[hole - 1], masses[hole - 1]
            hole -= 1
        ids[hole], masses[hole] = token, mass
    rest = 0.0
    for place in range(count):
        rest += masses[place]
    certain = 0
    # With one place there is none to draw for what is not kept.
    if ids[0] == always and width > 1:
        rest -= masses[0]
        certain = 1
    while masses[certain] * (width - certain) > rest:
        rest -= masses[certain]
        certain += 1
    threshold = rest / (width - certain)
    written, passed, point = certain, 0.0, uniform * threshold
    for place in range(certain, count):
        passed += masses[place]
        if passed > point and written < width:
            ids[written], masses[written] = ids[place], threshold
            written += 1
            point += threshold
    return written


def cut_uniforms(stream: str, dialogue_id: str, positions: int) -> np.ndarray:
    """Give one number in [0, 1) for each position of a dialogue, float64; another stream gives others.

    They do not depend on the seed of the extraction: the sums over its draws and these are unbiased together.
    """
    key = hashlib.sha256(f"cut {stream} {dialogue_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "little"))).random(positions)
