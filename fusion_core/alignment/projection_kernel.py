"""What one source row gives to one pivot position, compiled.

Legend: N pivot positions, M source rows, K entries, V vocabulary, B bytes of text. A *source row* is the source's
distribution whose gold token is ``source.labels[row]``. Masses are probabilities in float64.

At a pivot position whose gold token covers bytes [a, b) of the text, with the source row that covers byte a:

- an entry that does not begin with the row's bytes before a says nothing there; where the boundary falls inside a
  source token the others are divided by their sum, which makes them a conditional distribution;
- the source's own gold token is followed into the next row if it ends before b (the chain rule), else it counts for
  the pivot's gold token; so does every entry that lies on the text and reaches b;
- every other entry is looked up: the longest pivot token that is a prefix of the bytes since a.

Where a tokenizer changed the text, gold tokens still follow one another and count for each other; everything else is
read as the source's tokenizer spells it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fusion_core.alignment.compiled import compiled
from fusion_core.alignment.sampled_rows import cut_sampled_row
from fusion_core.alignment.trie import walk

BOUNDARY, CONDITIONED, NO_ENTRY, NOT_COVERED = 0, 1, 2, 3
# The smallest mass whose logarithm is taken.
TINY = 1e-300


class Rows(NamedTuple):
    """Distributions: token_ids int32 [M, K], log_probs float32 [M, K], label_log_probs float32 [M]."""

    token_ids: np.ndarray
    log_probs: np.ndarray
    label_log_probs: np.ndarray


class Scratch(NamedTuple):
    """A row under construction: slots int32 [V] (-1 or place), ids int32 [V], masses float64 [V]."""

    slots: np.ndarray
    ids: np.ndarray
    masses: np.ndarray


class View(NamedTuple):
    """How entries of a source row are read at one pivot position.

    read : bytes to strip from an entry; before : bytes of it that stand before the position's first byte of text
    (the same, or 0 and a lead that both first tokens share); inside : the boundary falls inside the source's token;
    whole : entries are looked up as whole tokens; node, best : where lookups start in the trie.
    """

    read: np.int64
    before: np.int64
    inside: bool
    whole: bool
    node: np.int64
    best: np.int64


@compiled
def begins_with(buffer, start, stop, other, other_start, length):
    """Tell whether ``buffer[start:stop]`` begins with ``other[other_start:other_start + length]``."""
    if stop - start < length or other_start + length > len(other):
        return False
    for index in range(length):  # noqa: SIM110  (compiled: a generator would not be)
        if buffer[start + index] != other[other_start + index]:
            return False
    return True


@compiled
def add_mass(scratch, count, token, mass, keep_first):
    """Put mass on a token of the row under construction; return how many tokens it has."""
    if mass <= 0.0:
        return count
    slot = scratch.slots[token]
    if slot < 0:
        scratch.slots[token] = count
        scratch.ids[count] = token
        scratch.masses[count] = mass
        return count + 1
    if not keep_first:
        scratch.masses[slot] += mass
    return count


@compiled
def clear(scratch, count):
    """Forget the row under construction."""
    for place in range(count):
        scratch.slots[scratch.ids[place]] = -1


@compiled
def write_row(scratch, count, normalise, out_ids, out_log_probs, always, uniform):
    """Write the most probable tokens in descending order, forget the row, return the mass written.

    ``uniform`` in [0, 1): the row is sampled, and what is too much for it is drawn, but for the token ``always``.
    """
    ids, masses = scratch.ids, scratch.masses
    clear(scratch, count)
    if uniform >= 0.0:
        count = cut_sampled_row(ids, masses, count, len(out_ids), always, uniform)
    for place in range(1, count):
        token, mass = ids[place], masses[place]
        hole = place
        while hole > 0 and masses[hole - 1] < mass:
            ids[hole], masses[hole] = ids[hole - 1], masses[hole - 1]
            hole -= 1
        ids[hole], masses[hole] = token, mass
    written = min(len(out_ids), count)
    total = 0.0
    for place in range(written):
        total += masses[place]
    for place in range(written):
        out_ids[place] = ids[place]
        mass = masses[place] / total if normalise else masses[place]
        out_log_probs[place] = np.log(max(mass, TINY))
    return total


@compiled
def entry_of(rows, row, entry, label, label_seen):
    """Return the token and mass of an entry; entry K is the gold token where it is not stored; -1 is nothing.

    The gold token's mass is its own stored probability: in a sampled row its entry is only an estimate of it.
    """
    if entry < rows.token_ids.shape[1]:
        token = rows.token_ids[row, entry]
        if token == label:
            return token, np.exp(np.float64(rows.label_log_probs[row]))
        return token, np.exp(np.float64(rows.log_probs[row, entry]))
    if label_seen:
        return np.int32(-1), 0.0
    return np.int32(label), np.exp(np.float64(rows.label_log_probs[row]))


@compiled
def fits(strings, token, label, view):
    """Tell whether an entry begins with the bytes already read of the row's gold token, and is longer."""
    begin, stop = strings.offsets[token], strings.offsets[token + 1]
    if view.inside and (strings.special[token] or stop - begin <= view.read):
        return False
    return begins_with(strings.buffer, begin, stop, strings.buffer, strings.offsets[label], view.before)


@compiled
def conditional_total(rows, row, label, strings, view, with_label):
    """Return the mass of all entries that fit inside the row's gold token."""
    total, seen = 0.0, False
    for entry in range(rows.token_ids.shape[1] + with_label):
        token, mass = entry_of(rows, row, entry, label, seen)
        if token == label:
            seen = True
            total += mass
        elif 0 <= token < len(strings.special) and fits(strings, token, label, view):
            total += mass
    return max(total, TINY)


@compiled
def look_up(strings, token, trie, vocabulary, view):
    """Return the pivot token for an entry that deviates from the text, -1 where there is none."""
    if strings.special[token]:
        return np.int64(vocabulary[token])
    if view.whole:
        return np.int64(vocabulary[token])
    begin, stop = strings.offsets[token], strings.offsets[token + 1]
    _, found = walk(trie, view.node, view.best, strings.buffer, begin + view.read, stop)
    return np.int64(found)


@compiled
def read_first_row(
    rows, row, label, strings, trie, vocabulary, view, text, start, end, gold, at_end, ends_here, scratch, keep_first,
    plain,
):  # fmt: skip
    """Add the entries of the row at the position. ``ends_here``: its gold token reaches b; ``plain``: add what lookups
    alone say of the stored entries.

    Returns tokens in the row, mass on the pivot's gold token, stored entries that landed, mass looked at, and what all
    masses were multiplied by.
    """
    scale, row_scale = 1.0, 1.0
    if view.inside:
        scale = 1.0 / conditional_total(rows, row, label, strings, view, 1)
        row_scale = 1.0 / conditional_total(rows, row, label, strings, view, 0) if plain else scale
    count, gold_mass, landed, looked_at, seen = 0, 0.0, 0, 0.0, False
    top_k = rows.token_ids.shape[1]
    for entry in range(top_k + 1):
        token, mass = entry_of(rows, row, entry, label, seen)
        if token < 0:
            continue
        on_text, readable = False, False
        if token == label:
            seen, on_text, readable = True, True, True
        elif token < len(strings.special):
            fitting = fits(strings, token, label, view)
            if view.inside and not fitting:
                continue
            begin, stop = strings.offsets[token] + view.before, strings.offsets[token + 1]
            on_text = (
                fitting
                and not at_end
                and not strings.special[token]
                and stop - begin >= end - start
                and begins_with(strings.buffer, begin, stop, text, start, stop - begin)
            )
            readable = fitting or view.read == 0 or strings.special[token]
        is_stored = entry < top_k
        found = np.int64(-1)
        if readable and ((plain and is_stored) or not on_text):
            found = look_up(strings, token, trie, vocabulary, view)
        mapped = found
        if on_text:
            mapped = np.int64(gold) if token != label or ends_here else np.int64(-1)
        if mapped == gold:
            gold_mass += mass * scale
        if plain:
            mapped = found if is_stored else np.int64(-1)
        if is_stored or not plain:
            looked_at += mass * row_scale
        landed += int(is_stored and (mapped >= 0 or (token == label and not plain)))
        if mapped >= 0:
            count = add_mass(scratch, count, mapped, mass * row_scale, keep_first)
    return count, gold_mass, landed, looked_at, scale


@compiled
def read_next_rows(
    rows, first, last, path, source, strings, trie, node, best, text, end, gold, count, scratch, keep_first, plain,
    sampled,
):  # fmt: skip
    """Follow the gold text through rows ``first`` to ``last``; ``path``: mass of the gold tokens before; ``plain``: add
    nothing to the row; ``sampled``: entries stand for the whole mass.

    Returns tokens in the row and mass added to the pivot's gold token.
    """
    gold_mass = 0.0
    for row in range(first, last + 1):
        label, start = source.labels[row], source.starts[row]
        placed, unplaced, seen = 0.0, 0.0, False
        for entry in range(rows.token_ids.shape[1] + 1):
            token, mass = entry_of(rows, row, entry, label, seen)
            if token < 0:
                continue
            if token >= len(strings.special) or (strings.special[token] and token != label):
                unplaced += mass
                continue
            mapped = np.int64(-1)
            if token == label:
                seen = True
                placed += mass
                if row == last:
                    mapped = np.int64(gold)
            else:
                begin, stop = strings.offsets[token], strings.offsets[token + 1]
                if stop - begin >= end - start and begins_with(strings.buffer, begin, stop, text, start, stop - begin):
                    mapped = np.int64(gold)
                else:
                    _, found = walk(trie, node, best, strings.buffer, begin, stop)
                    mapped = np.int64(found)
                if mapped >= 0:
                    placed += mass
                else:
                    unplaced += mass
            if mapped >= 0:
                if not plain:
                    count = add_mass(scratch, count, mapped, path * mass, keep_first)
                gold_mass += path * mass if mapped == gold else 0.0
        # Estimates of all masses add up to 1 in the mean alone: their rest would be of either sign.
        left = unplaced if sampled else 1.0 - placed
        if left > 0.0 and best >= 0:
            # What is not stored, or would end the turn here, says only that the bytes so far were read.
            if not plain:
                count = add_mass(scratch, count, best, path * left, keep_first)
            gold_mass += path * left if best == gold else 0.0
        path *= np.exp(np.float64(rows.label_log_probs[row]))
        node, best = walk(trie, node, best, strings.buffer, strings.offsets[label], strings.offsets[label + 1])
    return count, gold_mass
