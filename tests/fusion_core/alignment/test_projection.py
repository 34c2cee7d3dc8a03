"""Projection: worked by hand, against its plain definition on random vocabularies, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.alignment import BytePositions, align_by_bytes, project, project_with_coverage
from fusion_core.alignment.projection import BOUNDARY, CONDITIONED, NO_ENTRY, NOT_COVERED
from fusion_core.distributions import TopK
from fusion_core.errors import AlignmentError
from tests.fusion_core.alignment.helpers import (
    END,
    dense_rows,
    make_spans,
    make_vocabulary,
    one_hot,
    prefix_map,
    reference_row,
    row_masses,
    share,
)


def sparse_rows(rows: list[dict[int, float]], labels: np.ndarray, row_splits: np.ndarray, top_k: int = 4) -> TopK:
    """Rows as {token: probability}; an entry under key -1 is the label's probability where it is not stored."""
    ids = np.full((len(rows), top_k), -1, np.int32)
    log_probs = np.full((len(rows), top_k), -np.inf, np.float32)
    label_log_probs = np.zeros(len(rows), np.float32)
    for index, row in enumerate(rows):
        stored = sorted(((mass, token) for token, mass in row.items() if token >= 0), reverse=True)
        for place, (mass, token) in enumerate(stored):
            ids[index, place], log_probs[index, place] = token, np.log(mass)
        label_log_probs[index] = np.log(row.get(int(labels[index]), row.get(-1, 1e-30)))
    return TopK(ids, log_probs, label_log_probs, row_splits)


def run(pivot_values, pivot_tokens, source_values, source_tokens, text, rows, **settings):
    """Project hand-made rows on one response; vocabularies end with a special end of turn."""
    pivot_bytes = make_vocabulary([*pivot_values, END], [len(pivot_values)])
    source_bytes = make_vocabulary([*source_values, END + b"s"], [len(source_values)])
    pivot = make_spans(pivot_bytes, [[pivot_values.index(token) for token in pivot_tokens]], [text])
    source = make_spans(source_bytes, [[source_values.index(token) for token in source_tokens]], [text])
    shared, positions = share([text], pivot, source, pivot_bytes, source_bytes)
    vocabulary = prefix_map(source_bytes, pivot_bytes)
    vocabulary[-1] = len(pivot_values)
    named = [
        {(-1 if token is None else source_values.index(token) if token != END else len(source_values)): mass
         for token, mass in row.items()}
        for row in rows
    ]  # fmt: skip
    distributions = sparse_rows(named, source.labels, source.row_splits)
    found = project_with_coverage(distributions, positions, vocabulary, text=shared, **settings)
    names = [*pivot_values, END]
    masses = [
        {names[token]: mass for token, mass in row_masses(found.top_k, position).items()}
        for position in range(len(pivot.labels))
    ]
    return masses, found


def test_longer_source_token_is_conditioned_on_the_bytes_read() -> None:
    masses, found = run(
        [b"a", b"b", b"c", b"ab"], [b"a", b"b"], [b"ab", b"ac", b"a", b"b"], [b"ab"], b"ab",
        [{b"ab": 0.5, b"ac": 0.3, b"b": 0.1}],
    )  # fmt: skip
    # "ab" lies on the text and reaches the end of "a"; "ac" has "a" as its longest prefix; "b" stays.
    assert masses[0] == pytest.approx({b"a": 0.8, b"b": 0.1})
    # After "a": "ab" and "ac" fit, .5 to .3.
    assert masses[1] == pytest.approx({b"b": 0.625, b"c": 0.375})
    assert found.kinds.tolist() == [BOUNDARY, CONDITIONED]
    assert np.exp(found.top_k.label_log_probs) == pytest.approx([0.8, 0.625])
    assert found.kept == pytest.approx([0.9, 1.0])


def test_shorter_source_tokens_are_chained_along_the_gold_text() -> None:
    masses, found = run(
        [b"12", b"13", b"1", b"2", b"x"], [b"12"], [b"1", b"2", b"3", b"x"], [b"1", b"2"], b"12",
        [{b"1": 0.9, b"x": 0.1}, {b"2": 0.5, b"3": 0.4}],
    )  # fmt: skip
    # 12 and 13 get what the source gives to 2 and 3 after 1; the mass it does not store says only that 1 was read.
    assert masses[0] == pytest.approx({b"12": 0.45, b"13": 0.36, b"1": 0.09, b"x": 0.1})
    assert found.top_k.label_log_probs[0] == pytest.approx(np.log(0.45))
    assert found.kept[0] == pytest.approx(found.stored[0]) == pytest.approx(1.0)


def test_gold_token_outside_the_stored_entries_counts() -> None:
    masses, found = run(
        [b"a", b"b", b"c"], [b"a", b"b"], [b"ab", b"ac", b"c"], [b"ab"], b"ab", [{b"ac": 0.5, b"c": 0.2, None: 0.1}]
    )
    assert masses[0] == pytest.approx({b"a": 0.6, b"c": 0.2})
    assert masses[1] == pytest.approx({b"b": 0.1 / 0.6, b"c": 0.5 / 0.6})
    assert found.kinds.tolist() == [BOUNDARY, CONDITIONED]


def test_position_falls_back_where_no_stored_entry_fits() -> None:
    masses, found = run(
        [b"a", b"b", b"c"], [b"a", b"b"], [b"ab", b"ac", b"c"], [b"ab"], b"ab", [{b"c": 0.6, None: 0.1}]
    )
    assert masses[1] == {}
    assert found.kinds.tolist() == [BOUNDARY, NO_ENTRY]
    assert found.top_k.label_log_probs[1] == pytest.approx(0.0)


def test_end_of_turn_predicted_inside_the_text_goes_to_the_pivots() -> None:
    masses, _ = run(
        [b"a", b"b"], [b"a", b"b"], [b"a", b"b"], [b"a", b"b"], b"ab", [{b"a": 0.6, END: 0.3}, {b"b": 0.5, END: 0.5}]
    )
    assert masses == [pytest.approx({b"a": 0.6, END: 0.3}), pytest.approx({b"b": 0.5, END: 0.5})]


def test_word_start_space_before_the_response_is_stripped_and_prepended() -> None:
    values = [b" a", b"a", b" b", b"b", b" "]
    rows = [{b" a": 0.7, b" b": 0.2, b"b": 0.1}]
    masses, found = run(values, [b"a"], values, [b" a"], b"a", rows)
    # "b" without the space is not what follows the space that the source has read.
    assert masses[0] == pytest.approx({b"a": 0.7, b"b": 0.2})
    assert found.kinds.tolist() == [BOUNDARY] and found.kept[0] == pytest.approx(0.9)
    masses, _ = run(values, [b" a"], values, [b"a"], b"a", [{b"a": 0.7, b"b": 0.2, b" b": 0.1}])
    assert masses[0] == pytest.approx({b" a": 0.7, b" b": 0.2, b" ": 0.1})
    masses, _ = run(values, [b" a"], [*values, b"x"], [b" a"], b"a", rows)
    assert masses[0] == pytest.approx({b" a": 0.7, b" b": 0.2, b"b": 0.1})


def test_source_cut_before_the_pivot_covers_only_what_it_read() -> None:
    text = b"abcd"
    pivot_bytes, source_bytes = make_vocabulary([b"ab", b"cd"]), make_vocabulary([b"a", b"b", b"c"])
    pivot, source = make_spans(pivot_bytes, [[0, 1]], [text]), make_spans(source_bytes, [[0, 1, 2]], [text])
    shared, positions = share([text], pivot, source, pivot_bytes, source_bytes)
    found = project_with_coverage(
        one_hot(source.labels, source.row_splits), positions, prefix_map(source_bytes, pivot_bytes), text=shared
    )
    assert found.kinds.tolist() == [BOUNDARY, NOT_COVERED]
    assert found.top_k.token_ids[:, 0].tolist() == [0, -1]
    assert found.top_k.label_log_probs[0] == 0.0 and np.isneginf(found.top_k.label_log_probs[1])


def test_without_text_only_boundaries_are_projected_and_meeting_masses_add() -> None:
    source = sparse_rows([{0: 0.5, 1: 0.3, 2: 0.1}, {1: 0.6, 0: 0.4}], np.array([0, 1]), np.array([0, 2]))
    positions = align_by_bytes(np.array([2, 3, 4]), np.array([2, 4]))
    found = project(source, positions, np.array([5, 5, 7], np.int32))
    assert row_masses(found, 0) == pytest.approx({5: 0.8, 7: 0.1})
    assert row_masses(found, 1) == pytest.approx({5: 1.0})
    assert row_masses(found, 2) == {}
    assert found.row_splits.tolist() == [0, 3]
    first = project(source, positions, np.array([5, 5, 7], np.int32), duplicates="first")
    assert row_masses(first, 0) == pytest.approx({5: 0.5 / 0.6, 7: 0.1 / 0.6})


def test_matched_token_lists_count_only_one_to_one() -> None:
    source = sparse_rows([{0: 0.9}, {1: 0.8}], np.array([0, 1]), np.array([0, 2]))
    found = project(source, [[0], [0, 1], []], np.array([3, 4], np.int32))
    assert found.token_ids[:, 0].tolist() == [3, -1, -1]


def test_ids_beyond_the_tokenizer_have_no_pivot_token() -> None:
    source = sparse_rows([{0: 0.5, 900: 0.3}], np.array([0]), np.array([0, 1]))
    found = project(source, align_by_bytes([1], [1]), np.array([0], np.int32))
    assert row_masses(found, 0) == pytest.approx({0: 0.5})
    masses, found = run([b"a"], [b"a"], [b"a", b"b"], [b"a"], b"a", [{b"a": 0.5}])
    assert masses == [pytest.approx({b"a": 0.5})]


def test_ids_beyond_the_tokenizer_are_dropped_over_a_text() -> None:
    pivot_bytes, source_bytes = make_vocabulary([b"a", b"b"]), make_vocabulary([b"ab", b"a", b"b"])
    pivot, source = make_spans(pivot_bytes, [[0, 1]], [b"ab"]), make_spans(source_bytes, [[0]], [b"ab"])
    shared, positions = share([b"ab"], pivot, source, pivot_bytes, source_bytes)
    rows = sparse_rows([{0: 0.5, 70000: 0.3, 2: 0.2}], source.labels, source.row_splits)
    found = project_with_coverage(rows, positions, prefix_map(source_bytes, pivot_bytes), text=shared)
    assert row_masses(found.top_k, 0) == pytest.approx({0: 0.5, 1: 0.2})
    assert found.stored[0] == pytest.approx(1.0) and found.kept[0] == pytest.approx(0.7)


def test_positions_of_other_arrays_are_refused() -> None:
    source = one_hot(np.array([0]), np.array([0, 1]))
    with pytest.raises(AlignmentError, match="source row 4"):
        project(source, BytePositions(np.array([4]), np.array([0]), np.array([0, 1])), np.array([0], np.int32))
    vocabulary = make_vocabulary([b"a"])
    spans = make_spans(vocabulary, [[0, 0]], [b"aa"])
    shared, _ = share([b"aa"], spans, spans, vocabulary, vocabulary)
    with pytest.raises(AlignmentError, match="2 source tokens"):
        project(source, BytePositions(np.array([0, 0]), np.array([0, 0]), np.array([0, 2])), np.arange(1), text=shared)
    with pytest.raises(AlignmentError, match="byte positions"):
        project(source, [[0]], np.arange(1), text=shared)


@st.composite
def scenes(draw):
    """Two random vocabularies that can spell any text over a small alphabet, texts, tokenizations and distributions."""
    alphabet = b"ab " if draw(st.booleans()) else b"abc"
    letters = [bytes([byte]) for byte in alphabet]
    pieces = st.lists(st.sampled_from(letters), min_size=1, max_size=4).map(b"".join)
    texts = draw(
        st.lists(st.lists(st.sampled_from(letters), min_size=1, max_size=9).map(b"".join), min_size=1, max_size=3)
    )
    sides = []
    for _ in range(2):
        values = letters + sorted(draw(st.sets(pieces, max_size=8)) - set(letters))
        vocabulary = make_vocabulary([*values, END], [len(values)])
        responses, leads = [], []
        for text in texts:
            spelled = (b" " if draw(st.booleans()) and b" " in letters else b"") + text
            tokens, place = [], 0
            while place < len(spelled):
                fitting = [
                    index
                    for index, value in enumerate(values)
                    if spelled.startswith(value, place) and (place or len(value) > len(spelled) - len(text))
                ]
                if not fitting:
                    # A lead of its own would be no response position.
                    spelled = text
                    continue
                tokens.append(draw(st.sampled_from(fitting)))
                place += len(values[tokens[-1]])
            if draw(st.integers(0, 4)) == 0 and len(tokens) > 1:
                tokens = tokens[:-1]
            responses.append(tokens)
            leads.append(len(spelled) - len(text))
        sides.append((vocabulary, responses, leads))
    seed = draw(st.integers(0, 2**32 - 1))
    top_k = draw(st.integers(1, 6))
    return texts, sides, seed, top_k


def build(scene):
    texts, ((pivot_bytes, pivot_tokens, pivot_leads), (source_bytes, source_tokens, source_leads)), seed, top_k = scene
    pivot = make_spans(pivot_bytes, pivot_tokens, texts, len(pivot_bytes) - 1, pivot_leads)
    source = make_spans(source_bytes, source_tokens, texts, len(source_bytes) - 1, source_leads)
    shared, positions = share(texts, pivot, source, pivot_bytes, source_bytes)
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(len(source_bytes), 0.3), len(source.labels)) * 0.999 + 1e-4
    rows = dense_rows(probabilities, source.labels, source.row_splits, min(top_k, len(source_bytes)))
    vocabulary = prefix_map(source_bytes, pivot_bytes)
    vocabulary[-1] = len(pivot_bytes) - 1
    return shared, positions, rows, vocabulary


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_projection_is_its_definition(scene) -> None:
    shared, positions, rows, vocabulary = build(scene)
    found = project_with_coverage(rows, positions, vocabulary, text=shared)
    for position in range(len(positions)):
        expected = reference_row(rows, shared, position, vocabulary)
        masses = row_masses(found.top_k, position)
        if expected is None:
            assert not masses and found.kinds[position] in (NO_ENTRY, NOT_COVERED)
            continue
        kept = dict(sorted(expected.items(), key=lambda item: -item[1])[: rows.top_k])
        if shared.pivot_bytes.digest != shared.source_bytes.digest:
            assert sorted(masses.values()) == pytest.approx(sorted(kept.values()), rel=1e-4)
            assert all(mass == pytest.approx(expected[token], rel=1e-4) for token, mass in masses.items())
            gold = expected.get(int(shared.pivot.labels[position]), 0.0)
            assert np.exp(found.top_k.label_log_probs[position]) == pytest.approx(gold, rel=1e-4, abs=1e-30)
        assert found.kept[position] <= found.stored[position] + 1e-9


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_certain_source_makes_the_pivot_certain(scene) -> None:
    shared, positions, _, vocabulary = build(scene)
    rows = one_hot(shared.source.labels, shared.source.row_splits)
    found = project_with_coverage(rows, positions, vocabulary, text=shared)
    covered = found.kinds != NOT_COVERED
    assert np.array_equal(found.top_k.token_ids[covered, 0], shared.pivot.labels[covered])
    assert found.top_k.log_probs[covered, 0] == pytest.approx(0.0, abs=1e-6)
    assert np.all(found.top_k.token_ids[covered, 1:] == -1)
    assert found.top_k.label_log_probs[covered] == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_projecting_a_model_onto_itself_is_the_identity(scene) -> None:
    texts, (side, _), seed, top_k = scene
    shared, positions, rows, vocabulary = build((texts, (side, side), seed, top_k))
    found = project(rows, positions, vocabulary, text=shared)
    for part in ("token_ids", "log_probs", "label_log_probs", "row_splits"):
        assert np.array_equal(getattr(found, part), getattr(rows, part))
    without_text = project(rows, positions, vocabulary)
    assert np.array_equal(without_text.token_ids, rows.token_ids)
    assert without_text.log_probs == pytest.approx(rows.log_probs, abs=1e-6)
    assert np.array_equal(without_text.label_log_probs, rows.label_log_probs)


def test_equal_tokens_keep_their_rows_where_another_dialogue_is_cut_differently() -> None:
    vocabulary_bytes = make_vocabulary([b"a", b"b", b"ab", b"abb"])
    texts = [b"abb", b"ab"]
    pivot = make_spans(vocabulary_bytes, [[2, 1], [0, 1]], texts)
    source = make_spans(vocabulary_bytes, [[2, 1], [2]], texts)
    shared, positions = share(texts, pivot, source, vocabulary_bytes, vocabulary_bytes)
    # "abb" lies on the text, and yet the source gave it to another token than the gold one.
    rows = sparse_rows([{3: 0.5, 0: 0.2, -1: 0.1}, {1: 0.7}, {2: 0.6, 0: 0.1}], source.labels, source.row_splits)
    found = project_with_coverage(rows, positions, np.arange(4, dtype=np.int32), text=shared)
    assert np.array_equal(found.top_k.token_ids[:2], rows.token_ids[:2])
    assert np.array_equal(found.top_k.log_probs[:2], rows.log_probs[:2])
    assert np.array_equal(found.top_k.label_log_probs[:2], rows.label_log_probs[:2])
    assert row_masses(found.top_k, 2) == pytest.approx({0: 0.7})


def test_equal_tokenizers_with_other_ends_of_turn_map_them_inside_the_text_too() -> None:
    vocabulary_bytes = make_vocabulary([b"a", b"b", b"ab", b"<mine>", b"<theirs>"], special=[3, 4])
    pivot = make_spans(vocabulary_bytes, [[0, 1]], [b"ab"], end_token=3)
    source = make_spans(vocabulary_bytes, [[0, 1]], [b"ab"], end_token=4)
    shared, positions = share([b"ab"], pivot, source, vocabulary_bytes, vocabulary_bytes)
    rows = sparse_rows([{0: 0.5, 4: 0.3, 3: 0.1}, {1: 0.6, 2: 0.3}, {4: 0.7, 0: 0.2}], source.labels, source.row_splits)
    found = project_with_coverage(rows, positions, np.array([0, 1, 2, 3, 3], np.int32), text=shared)
    assert row_masses(found.top_k, 0) == pytest.approx({0: 0.5, 3: 0.4})
    assert np.array_equal(found.top_k.log_probs[1], rows.log_probs[1])
    assert row_masses(found.top_k, 2) == pytest.approx({3: 0.7, 0: 0.2})
    assert found.kept == pytest.approx([0.9, 0.9, 0.9])
    assert np.array_equal(found.top_k.label_log_probs, rows.label_log_probs)


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_settings_leave_out_what_they_say(scene) -> None:
    shared, positions, rows, vocabulary = build(scene)
    full = project_with_coverage(rows, positions, vocabulary, text=shared)
    bare = project_with_coverage(
        rows, positions, vocabulary, text=shared, condition_inside_tokens=False, gold_consistent=False
    )
    inside = positions.bytes_read > 0
    assert np.all(bare.top_k.token_ids[inside] == -1)
    assert np.array_equal(bare.top_k.label_log_probs, full.top_k.label_log_probs)
    assert not np.any(bare.kinds == CONDITIONED)
    for position in np.flatnonzero(bare.kinds == BOUNDARY):
        row = int(positions.source_rows[position])
        if shared.pivot.leads[position] or shared.source.leads[row]:
            continue
        expected: dict[int, float] = {}
        for token, mass in row_masses(rows, row).items():
            if vocabulary[token] >= 0:
                expected[int(vocabulary[token])] = expected.get(int(vocabulary[token]), 0.0) + mass
        assert row_masses(bare.top_k, position) == pytest.approx(expected, rel=1e-4)
