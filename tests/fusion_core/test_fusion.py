"""MinCE and AvgCE: worked by hand and against a dense reference."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.distributions import TopK
from fusion_core.errors import AlignmentError
from fusion_core.fusion import fuse, fuse_with_winners
from tests.fusion_core.alignment.helpers import row_masses


def make(rows: list[dict[int, float]], labels: list[float], row_splits: list[int], top_k: int = 3) -> TopK:
    ids = np.full((len(rows), top_k), -1, np.int32)
    log_probs = np.full((len(rows), top_k), -np.inf, np.float32)
    for index, row in enumerate(rows):
        for place, (token, mass) in enumerate(sorted(row.items(), key=lambda item: -item[1])):
            ids[index, place], log_probs[index, place] = token, np.log(mass)
    with np.errstate(divide="ignore"):
        return TopK(ids, log_probs, np.log(np.array(labels, np.float32)), np.array(row_splits, np.int64))


PIVOT = make([{1: 0.5, 2: 0.3}, {3: 0.6}, {4: 0.9}], [0.5, 0.6, 0.9], [0, 2, 3])
SOURCE = make([{1: 0.9}, {5: 0.7, 3: 0.2}, {4: 0.4, 6: 0.5}], [0.9, 0.2, 0.4], [0, 2, 3])


def rows_of(top_k: TopK) -> list[dict[int, float]]:
    return [row_masses(top_k, position) for position in range(top_k.positions)]


def test_mince_by_token_takes_the_better_row() -> None:
    fused = fuse_with_winners(PIVOT, [SOURCE], "mince", "token")
    assert fused.winners.tolist() == [1, 0, 0]
    assert rows_of(fused.top_k) == [pytest.approx({1: 0.9}), pytest.approx({3: 0.6}), pytest.approx({4: 0.9})]
    assert np.exp(fused.top_k.label_log_probs) == pytest.approx([0.9, 0.6, 0.9])


def test_mince_by_dialogue_compares_means() -> None:
    # First dialogue: pivot -(ln .5 + ln .6) = 1.20, source -(ln .9 + ln .2) = 1.71; second: pivot as well.
    fused = fuse_with_winners(PIVOT, [SOURCE], "mince", "dialogue")
    assert fused.winners.tolist() == [0, 0, 0]
    given_entropies = np.array([[2.0, 0.1], [1.0, 0.5]])
    fused = fuse_with_winners(PIVOT, [SOURCE], "mince", "dialogue", cross_entropies=given_entropies)
    assert fused.winners.tolist() == [1, 1, 0]
    assert rows_of(fused.top_k)[1] == pytest.approx({5: 0.7, 3: 0.2})


def test_ties_go_to_the_pivot() -> None:
    assert fuse_with_winners(PIVOT, [PIVOT, PIVOT], "mince", "token").winners.tolist() == [0, 0, 0]


def test_fusing_a_model_with_itself_changes_nothing() -> None:
    for function in ("mince", "avgce"):
        for level in ("dialogue", "token"):
            fused = fuse(PIVOT, [PIVOT], function, level)
            assert np.array_equal(fused.token_ids, PIVOT.token_ids)
            assert fused.log_probs == pytest.approx(PIVOT.log_probs, abs=1e-6)
            assert fused.label_log_probs == pytest.approx(PIVOT.label_log_probs, abs=1e-6)


def test_where_the_pivot_wins_the_label_alone_can_be_kept() -> None:
    fused = fuse(PIVOT, [SOURCE], "mince", "token", where_pivot_wins="label")
    assert rows_of(fused) == [pytest.approx({1: 0.9}), {}, {}]


SILENT = make([{}, {5: 0.7}, {}], [1e-3, 0.8, 0.0], [0, 2, 3])


def test_where_the_source_is_silent() -> None:
    wins = np.array([[1.0, 1.0], [0.5, 0.5]])
    label = fuse(PIVOT, [SILENT], "mince", "dialogue", cross_entropies=wins)
    assert rows_of(label) == [{}, pytest.approx({5: 0.7}), {}]
    own = fuse(PIVOT, [SILENT], "mince", "dialogue", cross_entropies=wins, unaligned="pivot")
    assert rows_of(own) == [pytest.approx({1: 0.5, 2: 0.3}), pytest.approx({5: 0.7}), pytest.approx({4: 0.9})]
    # Where the pivot wins the dialogue, its rows are kept whatever the source has.
    loses = fuse(PIVOT, [SILENT], "mince", "dialogue", cross_entropies=wins[::-1])
    assert rows_of(loses) == rows_of(PIVOT)
    by_token = fuse(PIVOT, [SILENT], "mince", "token")
    assert rows_of(by_token) == [{}, pytest.approx({5: 0.7}), {}]
    for function in ("mince", "avgce"):
        assert rows_of(fuse(PIVOT, [SILENT], function, "token", unaligned="pivot"))[0] == pytest.approx(
            {1: 0.5, 2: 0.3}
        )
    assert rows_of(fuse(PIVOT, [SILENT], "avgce", "dialogue", cross_entropies=wins))[2] == {}


def test_always_the_source_leaves_the_pivot_out() -> None:
    # The pivot is better on both dialogues; the first source has nothing to say at position 0 and the end.
    entropies = np.array([[0.1, 0.1], [0.5, 0.9], [0.6, 0.8]])
    fused = fuse_with_winners(PIVOT, [SILENT, SOURCE], "source", "dialogue", cross_entropies=entropies)
    assert fused.winners.tolist() == [0, 0, 0]
    assert rows_of(fused.top_k) == [{}, pytest.approx({5: 0.7}), pytest.approx({4: 0.4, 6: 0.5})]
    own = fuse(PIVOT, [SILENT, SOURCE], "source", "dialogue", cross_entropies=entropies, unaligned="pivot")
    assert rows_of(own)[0] == pytest.approx({1: 0.5, 2: 0.3})
    # By token the source that is silent at a position does not compete there.
    assert rows_of(fuse(PIVOT, [SILENT, SOURCE], "source", "token"))[0] == pytest.approx({1: 0.9})
    with pytest.raises(AlignmentError, match="there is no source"):
        fuse(PIVOT, [], "source", "token")


def test_always_the_pivot_is_what_no_source_changes() -> None:
    for level in ("dialogue", "token"):
        fused = fuse_with_winners(PIVOT, [SOURCE], "pivot", level)
        assert np.array_equal(fused.top_k.token_ids, PIVOT.token_ids)
        assert np.array_equal(fused.top_k.log_probs, PIVOT.log_probs)
        assert np.array_equal(fused.top_k.label_log_probs, PIVOT.label_log_probs)
    # Who was better is still told.
    assert fused.winners.tolist() == [1, 0, 0]


def test_positions_a_source_has_not_read_count_for_nobody() -> None:
    source = make([{1: 0.4}, {3: 0.6}, {}], [0.4, 0.0, 0.0], [0, 2, 3])
    fused = fuse_with_winners(PIVOT, [source], "mince", "dialogue")
    # At position 0 alone the pivot has .5; the second dialogue was not read at all.
    assert fused.winners.tolist() == [0, 0, 0]
    better = make([{1: 0.9}, {3: 0.6}, {}], [0.9, 0.0, 0.0], [0, 2, 3])
    assert fuse_with_winners(PIVOT, [better], "mince", "dialogue").winners.tolist() == [1, 1, 0]
    # A source that knows nothing of a dialogue does not keep the others from being compared.
    assert fuse_with_winners(PIVOT, [better, SILENT], "mince", "dialogue").winners.tolist()[:2] == [1, 1]


def test_avgce_weighs_by_exp_of_minus_cross_entropy() -> None:
    fused = fuse(PIVOT, [SOURCE], "avgce", "token")
    # Weights are the gold probabilities themselves, normalised: .5 : .9.
    assert row_masses(fused, 0) == pytest.approx({1: (0.5 * 0.5 + 0.9 * 0.9) / 1.4, 2: 0.5 * 0.3 / 1.4})
    assert np.exp(fused.label_log_probs[0]) == pytest.approx((0.5 * 0.5 + 0.9 * 0.9) / 1.4)
    assert list(row_masses(fused, 1)) == [3, 5]


def test_sources_of_other_positions_are_refused() -> None:
    with pytest.raises(AlignmentError, match="Source 1 covers 3 positions of 1 dialogues"):
        fuse(PIVOT, [make([{1: 1.0}] * 3, [1.0] * 3, [0, 3])], "mince", "token")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from(["dialogue", "token"]))
def test_avgce_is_the_weighted_mean_of_dense_distributions(seed, sources, level) -> None:
    random = np.random.default_rng(seed)
    size, positions, splits = 6, 7, np.array([0, 3, 3, 7])
    dense = random.dirichlet(np.ones(size), (1 + sources, positions))
    labels = random.integers(0, size, positions)
    models = []
    for probabilities in dense:
        order = np.argsort(-probabilities, axis=1)
        models.append(
            TopK(
                order.astype(np.int32),
                np.log(np.take_along_axis(probabilities, order, 1)).astype(np.float32),
                np.log(probabilities[np.arange(positions), labels]).astype(np.float32),
                splits,
            )
        )
    entropies = -np.stack([model.label_log_probs for model in models]).astype(np.float64)
    if level == "dialogue":
        for start, stop in pairwise(splits):
            entropies[:, start:stop] = entropies[:, start:stop].mean(axis=1, keepdims=True) if stop > start else 0
    weights = np.exp(-entropies)
    expected = (weights[:, :, None] * dense).sum(0) / weights.sum(0)[:, None]
    fused = fuse(models[0], models[1:], "avgce", level)
    found = np.zeros((positions, size))
    np.put_along_axis(found, fused.token_ids, np.exp(fused.log_probs), 1)
    assert found == pytest.approx(expected, rel=1e-4)
    best = fuse_with_winners(models[0], models[1:], "mince", level)
    assert np.array_equal(best.winners, np.argmin(entropies, axis=0))
