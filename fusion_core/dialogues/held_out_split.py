"""Which dialogues are trained on and which are held out, decided by content hash.

Legend: D dialogues.

Every dialogue has a score, a hash of its opening (everything up to its first response) spread evenly over 64 bits.
Below ``held_out_share`` it belongs to the held-out side, for good: adding or removing other data cannot bring it into
training. Dialogues with one opening, such as the branches of one conversation tree, have one score and stay together;
otherwise responses that are trained on would be scored. Three cases need more than that:

- ``held_out_limit``: the smallest scores of the domain are scored. The rest of its held-out side is set aside, neither
  trained nor scored, so that data added later cannot move a dialogue between training and scoring.
- A domain of two or more openings of which none falls below the share holds out the smallest score. It stays held out
  whatever is added to other domains, and within its own until one with a smaller score arrives.
- A domain of two or more openings that all fall below the share trains on the largest score, likewise.

A domain of a single opening is left where its score puts it.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np


class Part(IntEnum):
    """What becomes of a dialogue."""

    TRAIN = 0
    HELD_OUT = 1
    SET_ASIDE = 2
    NOT_CHOSEN = 3
    DUPLICATE = 4


def scores(ids: np.ndarray, purpose: bytes) -> np.ndarray:
    """Hash ids to evenly spread numbers, independent for each purpose.

    Parameters
    ----------
    ids : uint8 [D, 16]
    purpose : bytes
        Salt, at most 16 bytes.

    Returns
    -------
    uint64 [D]
    """
    content = ids.tobytes()
    hashed = bytearray()
    for start in range(0, len(content), 16):
        hashed += hashlib.blake2b(content[start : start + 16], digest_size=8, person=purpose).digest()
    return np.frombuffer(bytes(hashed), ">u8").astype(np.uint64)


def first_occurrences(ids: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Mark the first of equal ids, optionally within each group.

    Parameters
    ----------
    ids : uint8 [D, 16]
    groups : int32 [D], optional

    Returns
    -------
    bool [D]
    """
    high, low = _halves(ids)
    keys = [low, high] if groups is None else [low, high, groups]
    order = np.lexsort(keys)
    is_new = np.zeros(len(order), bool)
    is_new[:1] = True
    for key in keys:
        is_new[1:] |= key[order][1:] != key[order][:-1]
    marked = np.zeros(len(order), bool)
    marked[order[is_new]] = True
    return marked


def choose(ids: np.ndarray, files: np.ndarray, limits: list[int | None]) -> np.ndarray:
    """Mark duplicates and the dialogues beyond each file's limit; the others are ``Part.TRAIN`` for now.

    Parameters
    ----------
    ids : uint8 [D, 16]
    files : int32 [D]
        Which file each dialogue came from.
    limits : list of int or None
        Most dialogues of each file: the distinct ones with the smallest scores.

    Returns
    -------
    int8 [D] of Part
    """
    parts = np.full(len(ids), Part.DUPLICATE, np.int8)
    wanted = first_occurrences(ids, files)
    order_of_choice = scores(ids, b"choice") if any(limits) else None
    for index, limit in enumerate(limits):
        of_file = np.flatnonzero(wanted & (files == index))
        if limit is not None and order_of_choice is not None and len(of_file) > limit:
            beyond = of_file[np.argsort(order_of_choice[of_file], kind="stable")[limit:]]
            parts[beyond] = Part.NOT_CHOSEN
            wanted[beyond] = False
    kept = np.flatnonzero(wanted)
    parts[kept[first_occurrences(ids[kept])]] = Part.TRAIN
    return parts


def split(ids: np.ndarray, openings: np.ndarray, domains: np.ndarray, share: float, limit: int | None) -> np.ndarray:
    """Divide distinct dialogues into training, held-out and set-aside ones, domain by domain.

    Parameters
    ----------
    ids : uint8 [D, 16]
        All different; they decide which dialogues of one opening come first under ``limit``.
    openings : uint8 [D, 16]
        Ids of the dialogues up to their first response.
    domains : int32 [D]
    share : float
        Of each domain, in expectation.
    limit : int or None
        Most held-out dialogues of a domain.

    Returns
    -------
    int8 [D] of Part
    """
    score = scores(openings, b"held-out")
    high, low = _halves(ids)
    order = np.lexsort((low, high, score, domains))
    parts = np.full(len(ids), Part.TRAIN, np.int8)
    for members in np.split(order, np.flatnonzero(np.diff(domains[order])) + 1):
        held_out = _held_out_count(score[members], share)
        parts[members[:held_out]] = Part.SET_ASIDE
        parts[members[: held_out if limit is None else min(held_out, limit)]] = Part.HELD_OUT
    return parts


def _held_out_count(ascending: np.ndarray, share: float) -> int:
    """How many of a domain's dialogues, by ascending score, are on the held-out side."""
    smallest, largest = ascending[0], ascending[-1]
    threshold = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    if smallest < largest:
        if threshold <= smallest:
            return int(np.searchsorted(ascending, smallest, side="right"))
        threshold = min(threshold, largest)
    return int(np.searchsorted(ascending, threshold, side="left"))


def _halves(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view(">u8").reshape(-1, 2).T
