"""Text from a known byte-level Markov source: projected distributions against the true ones.

With vocabularies that are prefix codes a text has one tokenization, so a model's true distribution over its tokens is
the source's over their bytes, and nothing but the lookup of bytes is left to projection.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.alignment import project_with_coverage
from fusion_core.alignment.projection import CONDITIONED, NO_ENTRY, NOT_COVERED
from fusion_core.encoding.token_bytes import TokenBytes
from tests.fusion_core.alignment.helpers import dense_rows, make_spans, make_vocabulary, prefix_map, share

ALPHABET = [b"a", b"b", b"c"]


def prefix_code(random: np.random.Generator, splits: int) -> TokenBytes:
    """A complete prefix code: leaves of a tree whose inner nodes have all letters as children."""
    leaves = list(ALPHABET)
    for _ in range(splits):
        leaf = leaves.pop(int(random.integers(len(leaves))))
        leaves += [leaf + letter for letter in ALPHABET]
    return make_vocabulary(leaves)


def tokenise(vocabulary: TokenBytes, text: bytes) -> list[int]:
    """The one tokenization, without an unfinished token at the end."""
    ids, place = [], 0
    while True:
        found = [index for index, value in enumerate(vocabulary.values) if text.startswith(value, place)]
        if not found:
            return ids
        ids.append(found[0])
        place += len(vocabulary.values[found[0]])


def probability(transitions: np.ndarray, before: int, value: bytes) -> float:
    """Of the next bytes being ``value`` after the letter ``before``."""
    total = 1.0
    for byte in value:
        letter = byte - ord("a")
        total *= transitions[before, letter]
        before = letter
    return total


def true_rows(vocabulary: TokenBytes, transitions: np.ndarray, text: bytes, starts: np.ndarray) -> np.ndarray:
    """The true distribution over tokens at each start; the letter before the text is the first one."""
    before = [text[start - 1] - ord("a") if start else 0 for start in starts]
    return np.array([[probability(transitions, letter, value) for value in vocabulary.values] for letter in before])


def determined(source: TokenBytes, tokens: list[int], row: int, read: bytes, wanted: bytes) -> bool:
    """Whether the source's rows along the text say how probable ``wanted`` is after ``read`` bytes of a row's token."""
    rest = read + wanted
    while True:
        within = [value for value in source.values if rest.startswith(value)]
        if not within or within[0] == rest:
            return True
        if row >= len(tokens) or source.values[tokens[row]] != within[0]:
            return False
        rest, row = rest[len(within[0]) :], row + 1


def check(seed: int, pivot_splits: int, source_splits: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    transitions = random.dirichlet(np.ones(3), 3)
    pivot_bytes, source_bytes = prefix_code(random, pivot_splits), prefix_code(random, source_splits)
    letters = [0]
    for _ in range(40):
        letters.append(int(random.choice(3, p=transitions[letters[-1]])))
    text = bytes(ord("a") + letter for letter in letters[1:])
    pivot_tokens, source_tokens = tokenise(pivot_bytes, text), tokenise(source_bytes, text)
    pivot = make_spans(pivot_bytes, [pivot_tokens], [text], first_leads=[0])
    source = make_spans(source_bytes, [source_tokens], [text], first_leads=[0])
    shared, positions = share([text], pivot, source, pivot_bytes, source_bytes)
    truth = true_rows(pivot_bytes, transitions, text, pivot.starts)
    rows = dense_rows(true_rows(source_bytes, transitions, text, source.starts), source.labels, source.row_splits)
    # Room for every pivot token in the projected rows.
    room = max(len(pivot_bytes), rows.top_k) - rows.top_k
    rows = type(rows)(
        np.pad(rows.token_ids, ((0, 0), (0, room)), constant_values=-1),
        np.pad(rows.log_probs, ((0, 0), (0, room)), constant_values=-np.inf),
        rows.label_log_probs,
        rows.row_splits,
    )
    found = project_with_coverage(rows, positions, prefix_map(source_bytes, pivot_bytes), text=shared)
    assert not np.any(found.kinds == NO_ENTRY)
    for position in np.flatnonzero(found.kinds != NOT_COVERED):
        row = int(positions.source_rows[position])
        read = source_bytes.values[source.labels[row]][: positions.bytes_read[position]]
        known = [determined(source_bytes, source_tokens, row, read, value) for value in pivot_bytes.values]
        expected = np.where(known, truth[position], 0.0)
        projected = np.zeros(len(pivot_bytes))
        stored = found.top_k.token_ids[position] >= 0
        projected[found.top_k.token_ids[position][stored]] = np.exp(found.top_k.log_probs[position][stored])
        assert projected == pytest.approx(expected, rel=1e-5, abs=1e-9)
        gold = truth[position, pivot.labels[position]]
        assert np.exp(found.top_k.label_log_probs[position]) == pytest.approx(gold, rel=1e-5)
        assert found.kept[position] == pytest.approx(expected.sum(), rel=1e-5)
    return found.kinds


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_finer_pivot_gets_the_true_distribution(seed, splits) -> None:
    # With single letters as pivot tokens every one of them is determined at every position.
    check(seed, 0, splits)


def test_gold_masses_multiply_to_the_sources_probability_of_the_text() -> None:
    random = np.random.default_rng(3)
    letters = make_vocabulary(ALPHABET)
    words = make_vocabulary([b"aa", b"ab", b"ac", b"b", b"ca", b"cb", b"cc"])
    text = b"aabcacbbab"
    tokens = tokenise(words, text)
    rows = random.dirichlet(np.ones(len(words)), len(tokens))
    pivot = make_spans(letters, [tokenise(letters, text)], [text])
    source = make_spans(words, [tokens], [text])
    shared, positions = share([text], pivot, source, letters, words)
    distributions = dense_rows(rows, source.labels, source.row_splits)
    found = project_with_coverage(distributions, positions, prefix_map(words, letters), text=shared)
    expected = distributions.label_log_probs.sum()
    assert found.top_k.label_log_probs.sum() == pytest.approx(expected, rel=1e-5)


def test_positions_inside_source_tokens_take_part() -> None:
    assert np.mean(check(1, 0, 8) == CONDITIONED) > 0.3


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8), st.integers(0, 8))
def test_any_pivot_gets_the_truth_wherever_the_text_determines_it(seed, pivot_splits, source_splits) -> None:
    check(seed, pivot_splits, source_splits)
