"""Sampled rows stay unbiased when they are cut: by hand, and by Monte Carlo against dense distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion_core.alignment.projection import project_with_coverage
from fusion_core.alignment.sampled_rows import cut_sampled_row, cut_uniforms
from fusion_core.distributions import TopK
from fusion_core.extraction.sampled_logits import sample_rows
from fusion_core.fusion import fuse_with_winners
from tests.fusion_core.alignment.helpers import dense_rows, make_spans, make_vocabulary, prefix_map, share

DRAWS = 20_000
# Standard errors of the mean that a token's estimate may be away from its probability.
LARGEST_DEVIATION = 4.5
SMALLEST_WEIGHT = 0.1


def cut(masses: list[float], width: int, uniform: float, always: int = -1) -> dict[int, float]:
    ids, values = np.arange(len(masses), dtype=np.int32), np.array(masses)
    count = cut_sampled_row(ids, values, len(masses), width, always, uniform)
    return {int(token): float(mass) for token, mass in zip(ids[:count], values[:count], strict=True)}


def test_a_cut_worked_by_hand() -> None:
    # Three of five: 0.6 is over the threshold 0.4 / 2 of the rest, which end at 0.15, 0.25, 0.33 and 0.4. What lies at
    # 0.2 times the draw, and 0.2 further, stays with 0.2.
    masses = [0.1, 0.6, 0.15, 0.08, 0.07]
    assert cut(masses, 3, 0.5) == pytest.approx({1: 0.6, 2: 0.2, 3: 0.2})
    assert cut(masses, 3, 0.8) == pytest.approx({1: 0.6, 0: 0.2, 4: 0.2})
    assert cut(masses, 3, 0.5, always=4) == pytest.approx({4: 0.07, 1: 0.6, 0: 0.33})
    assert cut(masses, 5, 0.5) == pytest.approx(dict(enumerate(masses)))


@pytest.mark.parametrize(("width", "always"), [(4, -1), (4, 9), (4, 0), (1, -1), (1, 3), (11, 2)])
def test_a_cut_has_no_bias(width: int, always: int) -> None:
    random = np.random.default_rng(width + always)
    masses = (random.dirichlet(np.full(12, 0.4)) * 0.9).tolist()
    total = np.zeros(12)
    for uniform in (np.arange(DRAWS) + random.random(DRAWS)) / DRAWS:
        kept = cut(masses, width, uniform, always)
        assert len(kept) <= width and sum(kept.values()) == pytest.approx(0.9)
        if always >= 0 and width > 1:
            assert kept[always] == pytest.approx(masses[always])
        for token, mass in kept.items():
            total[token] += mass
    # One number decides a row, and numbers spread evenly leave hardly any noise.
    np.testing.assert_allclose(total / DRAWS, masses, atol=2e-3)


def sampled(probabilities: np.ndarray, k: int, labels: np.ndarray, random: np.random.Generator) -> TopK:
    """Draw k entries of each of many equal rows [rows, V]."""
    rows = torch.from_numpy(probabilities)
    ids, log_probs = sample_rows(rows.log(), torch.zeros(len(rows)), k, torch.from_numpy(random.random(len(rows))))
    label_log_probs = np.log(probabilities[np.arange(len(labels)), labels]).astype(np.float32)
    return TopK(ids.numpy(), log_probs.numpy(), label_log_probs, np.array([0, len(rows)], np.int64))


def assert_unbiased(found: TopK, truth: np.ndarray, position: int, every: int) -> None:
    """Compare the mean over repeated rows of one position with its dense truth [V]."""
    ids, masses = found.token_ids[position::every], np.exp(found.log_probs[position::every].astype(np.float64))
    dense = np.zeros((len(ids), len(truth)))
    rows = np.repeat(np.arange(len(ids)), ids.shape[1]).reshape(ids.shape)
    np.add.at(dense, (rows[ids >= 0], ids[ids >= 0]), masses[ids >= 0])
    # A token so rare that none or few of the rows have it shows too little of its own spread.
    error = np.sqrt(np.maximum(dense.var(0), truth * SMALLEST_WEIGHT) / len(ids))
    deviation = np.abs(dense.mean(0) - truth) / np.maximum(error, 1e-300)
    assert deviation[truth > 0].max() < LARGEST_DEVIATION and not dense[:, truth == 0].any()


def test_projection_over_another_tokenizer_has_no_bias_against_the_dense_truth() -> None:
    """The pivot's first token spans three of the source's, whose rows together have thrice K entries."""
    letters = [bytes([letter]) for letter in b"abcdefgh"]
    pivot_values = [*letters, *(b"a" + letter for letter in letters), *(b"ab" + letter for letter in letters)]
    pivot_bytes, source_bytes = make_vocabulary(pivot_values), make_vocabulary(letters)
    random = np.random.default_rng(3)
    repeats, k = DRAWS, 4
    rows = random.dirichlet(np.full(len(letters), 0.7), size=4) * 0.999 + 0.001 / len(letters)
    text = b"abcd"
    tokens = [letters.index(bytes([letter])) for letter in text]
    pivot_tokens = [pivot_values.index(b"abc"), pivot_values.index(b"d")]

    def project(times: int, distributions: TopK, uniforms: np.ndarray | None) -> TopK:
        pivot = make_spans(pivot_bytes, [pivot_tokens] * times, [text] * times)
        source = make_spans(source_bytes, [tokens] * times, [text] * times)
        shared, positions = share([text] * times, pivot, source, pivot_bytes, source_bytes)
        vocabulary = prefix_map(source_bytes, pivot_bytes)
        return project_with_coverage(distributions, positions, vocabulary, text=shared, uniforms=uniforms).top_k

    dense = dense_rows(rows, np.array(tokens), np.array([0, 4], np.int64))
    # As wide as all that may come together, so that nothing is cut.
    wide = TopK(
        np.pad(dense.token_ids, ((0, 0), (0, 30)), constant_values=-1),
        np.pad(dense.log_probs, ((0, 0), (0, 30)), constant_values=-np.inf),
        dense.label_log_probs,
        dense.row_splits,
    )
    whole = project(1, wide, None)
    truth = np.zeros((2, len(pivot_values)))
    for position in range(2):
        stored = whole.token_ids[position] >= 0
        truth[position, whole.token_ids[position][stored]] = np.exp(whole.log_probs[position][stored])
    drawn = sampled(np.tile(rows, (repeats, 1)), k, np.tile(tokens, repeats), random)
    found = project(repeats, drawn, random.random(2 * repeats))
    assert found.top_k == k < (whole.token_ids[0] >= 0).sum()
    for position in range(2):
        assert_unbiased(found, truth[position], position, 2)
    gold = np.exp(found.log_probs[::2][found.token_ids[::2] == pivot_tokens[0]])
    np.testing.assert_allclose(gold, truth[0, pivot_tokens[0]], rtol=1e-5)
    assert len(gold) == repeats
    biased = project(repeats, drawn, None)
    with pytest.raises(AssertionError):
        assert_unbiased(biased, truth[0], 0, 2)


def test_the_mean_of_sampled_models_has_no_bias() -> None:
    random = np.random.default_rng(5)
    rows = random.dirichlet(np.full(20, 0.3), size=2)
    labels = np.zeros(DRAWS, np.int64)
    models = [sampled(np.tile(row, (DRAWS, 1)), 5, labels, random) for row in rows]
    cross_entropies = np.zeros((2, DRAWS))
    found = fuse_with_winners(
        models[0], models[1:], "avgce", "token", cross_entropies=cross_entropies, uniforms=random.random(DRAWS)
    ).top_k
    assert found.top_k == 5
    assert_unbiased(found, rows.mean(0), 0, 1)


def test_draws_are_the_same_again_and_others_for_another_stream() -> None:
    first = cut_uniforms("source 0", "id", 5)
    np.testing.assert_array_equal(first, cut_uniforms("source 0", "id", 5))
    assert (first != cut_uniforms("source 1", "id", 5)).all() and ((first >= 0) & (first < 1)).all()
