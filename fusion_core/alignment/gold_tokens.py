"""Gold tokens on the text they cover, compiled.

Legend: M tokens, V vocabulary.

A token need not spell the text it covers: its tokenizer may have changed it. Several tokens may come from one
character; all but the last of them cover nothing, and together they are a chain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fusion_core.alignment.compiled import compiled


class Strings(NamedTuple):
    """A vocabulary's bytes: buffer uint8, offsets int64 [V + 1], special bool [V]."""

    buffer: np.ndarray
    offsets: np.ndarray
    special: np.ndarray


class Gold(NamedTuple):
    """Gold tokens: starts and ends int64, leads and labels int32, is_end bool, all [N] or [M]; see ``Spans``."""

    starts: np.ndarray
    ends: np.ndarray
    leads: np.ndarray
    labels: np.ndarray
    is_end: np.ndarray


@compiled
def last_row(row, end, gold):
    """Return the source row whose token reaches byte ``end``, or -1 where the source was cut before it."""
    while gold.ends[row] < end:
        if row + 1 >= len(gold.ends) or gold.starts[row + 1] != gold.ends[row]:
            return -1
        row += 1
    return row


@compiled
def covers_nothing(gold, strings, row):
    """Tell whether a token stands for text that a later one covers; a mere word-start mark or end of turn does not."""
    label = gold.labels[row]
    return (
        gold.starts[row] == gold.ends[row]
        and not gold.is_end[row]
        and gold.leads[row] < strings.offsets[label + 1] - strings.offsets[label]
    )


@compiled
def first_of_chain(row, gold, strings):
    """Return the first of the tokens that came from the same characters as a row's."""
    while row > 0 and gold.starts[row - 1] == gold.starts[row] and covers_nothing(gold, strings, row - 1):
        row -= 1
    return row


@compiled
def end_of_chain(position, gold, strings):
    """Return where the last of the tokens ends that came from the same characters as a position's."""
    while position + 1 < len(gold.ends) and covers_nothing(gold, strings, position):
        if gold.starts[position + 1] != gold.ends[position] or gold.is_end[position + 1]:
            break
        position += 1
    return gold.ends[position]


@compiled
def has_characters_of(strings, label, lead, text, start, end):
    """Tell whether a token's characters begin where those of the text it covers do, so that it can be read in part."""
    begin = strings.offsets[label] + lead
    if strings.offsets[label + 1] - begin != end - start:
        return False
    for index in range(end - start):
        own, other = strings.buffer[begin + index], text[start + index]
        if own != other and ((own & 0xC0) == 0x80) != ((other & 0xC0) == 0x80):
            return False
    return True
