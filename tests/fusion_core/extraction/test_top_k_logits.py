"""Chunked top-k distributions against dense float64 ones."""

from __future__ import annotations

import pytest
import torch

from fusion_core.extraction import top_k_logits
from fusion_core.extraction.top_k_logits import LogitTransform, top_k_distributions, top_k_of_logits

TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.3, soft_cap=20.0)]


def dense(hidden, weight, labels, k, bias=None, transform=None, vocabulary_size=None):
    """All logits at once in float64."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits += bias.double()
    log_probs = (transform or LogitTransform())(logits).log_softmax(1)
    label_log_probs = log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
    top = log_probs[:, :vocabulary_size].sort(dim=1, descending=True, stable=True)
    return top.indices[:, :k], top.values[:, :k], label_log_probs


def inputs(positions, vocabulary, dtype=torch.float32, hidden_size=48):
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(positions, hidden_size, generator=generator)
    weight = torch.randn(vocabulary, hidden_size, generator=generator) * 0.5
    bias = torch.randn(vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary - 20, (positions,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("vocabulary", [100, 2048, 5003])
@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_equals_dense_distributions(vocabulary, transform, chunk_size):
    hidden, weight, bias, labels = inputs(33, vocabulary)
    found = top_k_distributions(hidden, weight, labels, 10, bias=bias, chunk_size=chunk_size, transform=transform)
    expected = dense(hidden, weight, labels, 10, bias, transform)
    assert [part.dtype for part in found] == [torch.int32, torch.float32, torch.float32]
    assert torch.equal(found[0].long(), expected[0])
    torch.testing.assert_close(found[1].double(), expected[1], atol=2e-5, rtol=0)
    torch.testing.assert_close(found[2].double(), expected[2], atol=2e-5, rtol=0)


def test_padding_of_the_vocabulary_counts_in_the_normaliser_and_is_never_stored():
    hidden, weight, _, labels = inputs(20, 4100)
    weight[4085:] *= 5
    found = top_k_distributions(hidden, weight, labels, 8, vocabulary_size=4085)
    expected = dense(hidden, weight, labels, 8, vocabulary_size=4085)
    unpadded = dense(hidden, weight[:4085], labels, 8)
    assert torch.equal(found[0].long(), expected[0])
    torch.testing.assert_close(found[1].double(), expected[1], atol=2e-5, rtol=0)
    assert (unpadded[1] - expected[1]).min() > 0.1


def test_equal_logits_come_in_the_order_of_their_ids():
    weight = torch.zeros(5000, 4)
    weight[[4999, 77, 2100, 40, 39], 0] = 1.0
    weight[3000, 0] = 2.0
    hidden = torch.eye(4)[:1].repeat(3, 1)
    labels = torch.zeros(3, dtype=torch.long)
    assert top_k_distributions(hidden, weight, labels, 8)[0].tolist() == [[3000, 39, 40, 77, 2100, 4999, 0, 1]] * 3
    assert top_k_distributions(hidden, weight, labels, 4)[0].tolist() == [[3000, 39, 40, 77]] * 3


def test_fewer_tokens_than_entries_leave_padding():
    hidden, weight, _, _ = inputs(3, 30)
    token_ids, log_probs, _ = top_k_distributions(hidden, weight[:5], torch.zeros(3, dtype=torch.long), 9)
    assert (token_ids[:, 5:] == -1).all() and torch.isneginf(log_probs[:, 5:]).all()
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3))
    assert (token_ids[:, :5] >= 0).all()


def test_no_positions():
    found = top_k_distributions(torch.empty(0, 8), torch.randn(50, 8), torch.empty(0, dtype=torch.long), 3)
    assert [tuple(part.shape) for part in found] == [(0, 3), (0, 3), (0,)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_half_precision_is_far_closer_than_the_rounding_of_its_logits(dtype, transform):
    hidden, weight, bias, labels = inputs(200, 6000, dtype)
    found = top_k_distributions(hidden, weight, labels, 10, bias=bias, transform=transform)
    expected = dense(hidden, weight, labels, 10, bias, transform)
    rounded = transform((hidden @ weight.T + bias).double()).log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    assert (found[0].long() == expected[0]).float().mean() > 0.999
    error = (found[2].double() - expected[2]).abs().max()
    assert error < 0.25 * (rounded - expected[2]).abs().max()
    assert (found[1].double() - expected[1]).abs().max() < 1.1 * error


def test_only_a_chunk_of_logits_is_held(monkeypatch):
    seen = []
    whole = top_k_logits.chunk_logits

    def watch(*arguments):
        chunk = whole(*arguments)
        seen.append(chunk.tiles.numel())
        return chunk

    monkeypatch.setattr(top_k_logits, "chunk_logits", watch)
    hidden, weight, _, labels = inputs(100, 3000)
    top_k_distributions(hidden, weight, labels, 5, chunk_size=8)
    assert len(seen) == 13 and max(seen) <= 8 * 4096


def test_not_a_number_reaches_the_result():
    hidden, weight, _, labels = inputs(4, 100)
    hidden[2, 0] = torch.nan
    _, log_probs, label_log_probs = top_k_distributions(hidden, weight, labels, 5)
    assert label_log_probs.isnan().tolist() == [False, False, True, False]
    assert log_probs[:, 0].isnan().tolist() == [False, False, True, False]


def test_logits_of_the_model_itself_give_the_same():
    hidden, weight, bias, labels = inputs(40, 3001)
    found = top_k_of_logits(hidden @ weight.T + bias, labels, 10, vocabulary_size=2990)
    expected = top_k_distributions(hidden, weight, labels, 10, bias=bias, vocabulary_size=2990)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-5, rtol=0)
