"""A vocabulary as a byte trie in flat arrays: the longest token that is a prefix of some bytes.

Legend: V vocabulary, S slots of the hash table (a power of two).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from fusion_core.alignment.compiled import compiled
from fusion_core.encoding.token_bytes import TokenBytes

NO_NODE = -1
ROOT = 0
# Multiplier of Fibonacci hashing: the odd integer next to 2^64 / golden ratio, as a signed number.
HASH_MULTIPLIER = np.int64(-7046029254386353131)
KEPT_TRIES = 4


class Trie(NamedTuple):
    """Edges of the trie in an open-addressed hash table.

    Parameters
    ----------
    keys : int64 [S]
        ``node * 256 + byte`` of an edge, -1 in free slots.
    children : int32 [S]
        The node that the edge leads to.
    tokens : int32 [nodes]
        Token that ends at a node, -1 where none does.
    """

    keys: np.ndarray
    children: np.ndarray
    tokens: np.ndarray


_CACHE: OrderedDict[str, Trie] = OrderedDict()


def build_trie(vocabulary: TokenBytes) -> Trie:
    """Build the trie over every token that ordinary text can hold; the last few are kept by content.

    Of several tokens with the same bytes, a byte-fallback token loses to the others, then the lower id wins.
    """
    trie = _CACHE.get(vocabulary.digest)
    if trie is None:
        buffer, offsets = vocabulary.flat
        usable = ~vocabulary.is_special & (vocabulary.lengths > 0)
        ids = np.flatnonzero(usable)
        order = ids[np.argsort(vocabulary.is_byte_fallback[ids], kind="stable")]
        slots = 1 << int(np.ceil(np.log2(max(16, 2 * int(vocabulary.lengths[ids].sum())))))
        trie = Trie(*_build(buffer, offsets, order.astype(np.int64), slots))
        _CACHE[vocabulary.digest] = trie
        while len(_CACHE) > KEPT_TRIES:
            _CACHE.popitem(last=False)
    return trie


@compiled
def find_slot(keys, key):
    """Return the slot that holds an edge, or the free one where it belongs."""
    mask = len(keys) - 1
    mixed = key * HASH_MULTIPLIER
    slot = (mixed ^ (mixed >> 29)) & mask
    while keys[slot] != key and keys[slot] != -1:
        slot = (slot + 1) & mask
    return slot


@compiled
def walk(trie, node, token, buffer, start, stop):
    """Follow ``buffer[start:stop]`` from a node; return the node reached and the last token passed on the way."""
    for index in range(start, stop):
        if node == NO_NODE:
            break
        key = np.int64(node) * 256 + buffer[index]
        slot = find_slot(trie.keys, key)
        if trie.keys[slot] != key:
            node = NO_NODE
            break
        node = trie.children[slot]
        if trie.tokens[node] >= 0:
            token = trie.tokens[node]
    return node, token


@compiled
def longest_prefixes(trie, buffer, offsets):
    """Return, for each string of a flat buffer, the longest token that is a prefix of it; -1 where there is none."""
    found = np.full(len(offsets) - 1, -1, np.int32)
    for index in range(len(found)):
        _, found[index] = walk(trie, ROOT, -1, buffer, offsets[index], offsets[index + 1])
    return found


@compiled
def _build(buffer, offsets, order, slots):
    keys = np.full(slots, -1, np.int64)
    children = np.zeros(slots, np.int32)
    tokens = np.full(slots // 2 + 1, -1, np.int32)
    nodes = 1
    for token in order:
        node = 0
        for index in range(offsets[token], offsets[token + 1]):
            key = np.int64(node) * 256 + buffer[index]
            slot = find_slot(keys, key)
            if keys[slot] != key:
                keys[slot] = key
                children[slot] = nodes
                nodes += 1
            node = children[slot]
        if tokens[node] < 0:
            tokens[node] = token
    return keys, children, tokens[:nodes].copy()
