"""Byte positions against a plain search, and time warping against its full table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from fusion_core.alignment import align_by_bytes, align_by_dtw
from fusion_core.errors import AlignmentError


def test_positions_by_hand() -> None:
    # pivot: |ab|c|def|end|, source: |a|bcd|ef|end|
    found = align_by_bytes([2, 3, 6, 6], [1, 4, 6, 6])
    assert found.source_rows.tolist() == [0, 1, 1, 3]
    assert found.bytes_read.tolist() == [0, 1, 2, 0]
    assert found.at_boundary.tolist() == [True, False, False, True]
    assert found.row_splits.tolist() == [0, 4]


def test_what_the_source_has_not_read_is_not_covered() -> None:
    found = align_by_bytes([2, 4, 6, 6], [3])
    assert found.source_rows.tolist() == [0, 0, -1, -1]
    assert align_by_bytes([1, 2], []).source_rows.tolist() == [-1, -1]
    assert len(align_by_bytes([], [1])) == 0


def test_falling_ends_are_refused() -> None:
    with pytest.raises(AlignmentError, match="token 1 ends at byte 2"):
        align_by_bytes([3, 2], [3])


ends = st.lists(st.integers(1, 4), max_size=30).map(np.cumsum)


@settings(max_examples=200, deadline=None)
@given(ends, ends)
def test_alignment_is_monotone_and_finds_the_token_that_covers_the_byte(pivot_ends, source_ends) -> None:
    found = align_by_bytes(pivot_ends, source_ends)
    starts = [0, *source_ends[:-1]]
    for position, start in enumerate([0, *pivot_ends[:-1]][: len(pivot_ends)]):
        covering = [row for row, end in enumerate(source_ends) if starts[row] <= start < end]
        assert found.source_rows[position] == (covering[0] if covering else -1)
        if covering:
            assert found.bytes_read[position] == start - starts[covering[0]]
    covered = found.source_rows[found.source_rows >= 0]
    assert np.all(np.diff(covered) >= 0)


def full_table_dtw(pivot_tokens: list[str], source_tokens: list[str]) -> list[list[int]]:
    """The paper's procedure, cell by cell."""

    def bare(token: str) -> str:
        return token.replace("▁", "").replace("Ġ", "")

    rows, columns = len(source_tokens), len(pivot_tokens)
    table = np.full((rows + 1, columns + 1), np.inf)
    table[0, 0] = 0
    for row in range(rows):
        for column in range(columns):
            cost = Levenshtein.distance(bare(source_tokens[row]), bare(pivot_tokens[column]))
            table[row + 1, column + 1] = cost + min(table[row, column + 1], table[row + 1, column], table[row, column])
    matches: list[list[int]] = [[] for _ in pivot_tokens]
    row, column = rows, columns
    while True:
        matches[column - 1].insert(0, row - 1)
        if row == column == 1:
            return matches
        move = int(np.argmin([table[row - 1, column - 1], table[row, column - 1], table[row - 1, column]]))
        row, column = row - (move != 1), column - (move != 2)


def test_dtw_by_hand() -> None:
    assert align_by_dtw(["▁Hello", "▁world"], ["Hello", "Ġwor", "ld"]) == [[0], [1, 2]]
    assert align_by_dtw(["a", "b"], ["ab"]) == [[0], [0]]
    assert align_by_dtw(["a"], []) == [[]]
    assert align_by_dtw([], ["a"]) == []


def test_dtw_ties_prefer_diagonal_then_left_then_up() -> None:
    assert align_by_dtw(["a", "a"], ["a", "a"]) == [[0], [1]]
    # All cells cost nothing: back from the corner diagonally, then along the longer side.
    assert align_by_dtw(["a", "a", "a"], ["a", "a"]) == [[0], [0], [1]]
    assert align_by_dtw(["a", "a"], ["a", "a", "a"]) == [[0, 1], [2]]


tokens = st.lists(st.text(alphabet="ab▁Ġ", max_size=4), min_size=1, max_size=14)


@settings(max_examples=300, deadline=None)
@given(tokens, tokens, st.integers(0, 14), st.integers(0, 14))
def test_dtw_is_the_full_table(pivot_tokens, middle, start, stop) -> None:
    assert align_by_dtw(pivot_tokens, middle) == full_table_dtw(pivot_tokens, middle)
    similar = pivot_tokens[:start] + middle + pivot_tokens[max(start, stop) :]
    assert align_by_dtw(pivot_tokens, similar) == full_table_dtw(pivot_tokens, similar)


def test_dtw_is_the_full_table_on_long_texts() -> None:
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), random.integers(1, 7))) for _ in range(60)]
    text = random.choice(words, 150)
    halves = [piece for word in text for piece in ((word[:2], word[2:]) if len(word) > 3 else (word,))]
    chunks = [piece for word in text for piece in ((word[:4], word[4:]) if len(word) > 4 else (word,))]
    assert align_by_dtw(halves, chunks) == full_table_dtw(halves, chunks)
