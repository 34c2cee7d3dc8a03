"""Sampled distributions: unbiased, distinct, and of the whole mass."""

from __future__ import annotations

import numpy as np
import torch

from fusion_core.extraction.sampled_logits import (
    position_uniforms,
    sample_rows,
    sampled_distributions,
    sampled_of_logits,
)


def test_expected_weights_are_the_probabilities_where_those_of_top_k_are_not():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 200, generator=generator) * 2
    probabilities, draws = logits.softmax(1)[0], 20_000
    uniforms = torch.rand(draws, generator=generator, dtype=torch.float64)
    ids, log_weights = sample_rows(logits.expand(draws, -1), logits.logsumexp(1).expand(draws), 6, uniforms)
    mean = torch.zeros(200).index_add_(0, ids.flatten().long(), log_weights.exp().flatten()) / draws
    # A drawn token's weight is at most the threshold, so its mean over the draws is this close nearly always.
    threshold = float(log_weights[0, -1].exp())
    assert (mean - probabilities).abs().max() < 5 * (threshold * probabilities.max() / draws) ** 0.5
    top = logits.topk(6).indices[0]
    tail = torch.ones(200, dtype=torch.bool).index_fill_(0, top, False)
    assert probabilities[tail].sum() > 0.2
    torch.testing.assert_close(mean[tail].sum(), probabilities[tail].sum(), atol=0.01, rtol=0)


def test_rows_hold_distinct_tokens_and_all_of_the_mass():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(500, 300, generator=generator) * torch.rand(500, 1, generator=generator) * 5
    uniforms = torch.rand(500, generator=generator, dtype=torch.float64)
    ids, log_weights = sample_rows(logits, logits.logsumexp(1), 12, uniforms)
    assert all(len(set(row)) == 12 for row in ids.tolist())
    torch.testing.assert_close(log_weights.exp().sum(1), torch.ones(500), atol=1e-5, rtol=0)
    assert (log_weights[:, 1:] <= log_weights[:, :-1]).all()


def test_rows_hold_distinct_tokens_where_nearly_all_mass_is_certain():
    # Tails far below the rounding of a sum near 1.
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 60, generator=generator) * 20
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    ids, _ = sample_rows(logits, logits.logsumexp(1), 12, uniforms)
    assert all(len({token for token in row if token >= 0}) == sum(token >= 0 for token in row) for row in ids.tolist())


def test_half_precision_inputs_are_not_rounded_again():
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(40, 24, generator=generator).bfloat16()
    weight = (torch.randn(300, 24, generator=generator) * 3).bfloat16()
    labels, uniforms = torch.arange(40), torch.full((40,), 0.5, dtype=torch.float64)
    ids, log_weights, label_log_probs = sampled_distributions(hidden, weight, labels, 7, uniforms)
    expected = (hidden.double() @ weight.double().T).log_softmax(1)
    torch.testing.assert_close(label_log_probs.double(), expected.diagonal(), atol=1e-4, rtol=0)
    # The most probable token is kept with its own probability wherever that is above a share of an entry.
    certain = expected.max(1).values.exp() > 1 / 7
    first = expected.gather(1, ids[:, :1].long())[:, 0]
    assert certain.sum() > 30
    torch.testing.assert_close(log_weights[certain, 0].double(), first[certain], atol=1e-4, rtol=0)


def test_certain_tokens_keep_their_own_probability():
    # By hand: of 0.7, 0.1, 0.1, 0.1 and three entries, the first is certain; two of the others get 0.15 each.
    logits = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    ids, log_weights = sample_rows(logits, torch.zeros(1), 3, torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(log_weights.exp(), torch.tensor([[0.7, 0.15, 0.15]]))
    # Points at 0.075 and 0.225 of the mass 0.3 of tokens 1, 2 and 3.
    assert ids.tolist() == [[0, 1, 3]]


def test_fewer_tokens_than_entries_leave_padding():
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 1.0, 2.0]])
    ids, log_weights = sample_rows(logits, logits.logsumexp(1), 5, torch.rand(2, dtype=torch.float64))
    assert sorted(ids[0].tolist()) == [-1, -1, -1, 0, 2]
    assert sorted(ids[1].tolist()) == [-1, -1, 0, 1, 2]
    torch.testing.assert_close(log_weights.exp().sum(1), torch.ones(2))


def test_hidden_states_and_logits_give_the_same_draws_whatever_the_chunk():
    generator = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(30, 16, generator=generator), torch.randn(4100, 16, generator=generator)
    labels, uniforms = torch.arange(30), torch.rand(30, generator=generator, dtype=torch.float64)
    found = sampled_distributions(hidden, weight, labels, 7, uniforms, vocabulary_size=4090, chunk_size=4)
    expected = sampled_of_logits(hidden @ weight.T, labels, 7, uniforms, vocabulary_size=4090)
    # A draw at the very edge of a token may fall to its neighbour by the rounding of sums.
    assert (found[0] == expected[0]).float().mean() > 0.99
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2], (hidden @ weight.T).log_softmax(1).diagonal(), atol=1e-4, rtol=0)


def test_uniforms_depend_on_seed_and_dialogue_alone():
    first = position_uniforms(0, "a", 5)
    assert np.array_equal(first, position_uniforms(0, "a", 9)[:5])
    assert not np.array_equal(first, position_uniforms(1, "a", 5))
    assert not np.array_equal(first, position_uniforms(0, "b", 5))
