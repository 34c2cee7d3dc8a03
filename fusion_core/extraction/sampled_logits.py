"""Sampled next-token distributions: k tokens whose stored probabilities are unbiased estimates of all V.

Legend: N positions, n positions of one chunk, H hidden size, V vocabulary, K entries.

Sparse logit sampling (arXiv 2503.16870) draws token ids by probability and weighs them so that every token's expected
weight is its probability; keeping the k most probable instead, as they are, gives the tail too little. Drawn with
replacement, a few likely tokens would take most of the k draws. Here k distinct tokens are taken with the least
variance that unbiased weights allow (VarOpt, arXiv 0803.0473): a threshold t is set such that min(1, p / t) sums to k;
tokens of p >= t are kept with their own probability, each other one with probability p / t and weight t. The weights of
a row add up to the whole mass, as its probabilities do.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from fusion_core.extraction.top_k_logits import LogitTransform, chunk_logits, default_chunk_size, exact_logits


@torch.no_grad()
def sampled_distributions(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    k: int,
    uniforms: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int | None = None,
    transform: LogitTransform | None = None,
    vocabulary_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw k next tokens at each position, with unbiased estimates of their probabilities.

    Parameters
    ----------
    hidden, weight, labels, k, bias, chunk_size, transform, vocabulary_size
        As in `top_k_distributions`.
    uniforms : float64 Tensor [N]
        One number in [0, 1) a position; decides its draws.

    Returns
    -------
    token_ids : int32 [N, k]
        Distinct ids by descending weight; -1 pads where fewer than k ids have a probability.
    log_probs : float32 [N, k]
        Logarithms of the weights, whose expectation over draws is p for each token; -inf pads.
    label_log_probs : float32 [N]
        log p of the label itself, not an estimate.
    """
    transform = transform or LogitTransform()
    storable = min(vocabulary_size or len(weight), len(weight))
    step = chunk_size or default_chunk_size(len(weight), hidden.device)
    parts = []
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        # Every logit decides what is drawn, so none may be rounded to half precision.
        chunk = chunk_logits(hidden[rows], weight, bias, transform, storable, torch.float32)
        logits = transform(chunk.tiles.transpose(0, 1).flatten(1)[:, :storable].float())
        ids, log_weights = sample_rows(logits, chunk.log_normaliser, k, uniforms[rows])
        label_logits = transform(exact_logits(hidden[rows], weight, bias, labels[rows].to(torch.int64).unsqueeze(1)))
        parts.append((ids, log_weights, label_logits.squeeze(1) - chunk.log_normaliser))
    if not parts:
        empty = torch.empty(0, k, device=hidden.device)
        return empty.to(torch.int32), empty, torch.empty(0, device=hidden.device)
    ids, log_weights, label_log_probs = (torch.cat(part) for part in zip(*parts, strict=True))
    return ids, log_weights, label_log_probs.clamp_(max=0.0)


@torch.no_grad()
def sampled_of_logits(
    logits: Tensor, labels: Tensor, k: int, uniforms: Tensor, *, vocabulary_size: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sampled_distributions`, from logits [N, V] that a model computed itself."""
    logits = logits.float()
    log_normaliser = torch.logsumexp(logits, 1)
    ids, log_weights = sample_rows(logits[:, :vocabulary_size], log_normaliser, k, uniforms)
    label_logits = logits.gather(1, labels.to(torch.int64).unsqueeze(1)).squeeze(1)
    return ids, log_weights, (label_logits - log_normaliser).clamp_(max=0.0)


def sample_rows(logits: Tensor, log_normaliser: Tensor, k: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from logits [n, V]; returns int32 ids and float32 log weights, both [n, k].

    Source: systematic sampling with inclusion probabilities min(1, p / t), arXiv 0803.0473.
    """
    vocabulary = logits.shape[1]
    probabilities = (logits.double() - log_normaliser.double().unsqueeze(1)).exp()
    entries = min(k, vocabulary)
    top = probabilities.topk(entries, dim=1)
    # certain[n]: the least m for which the next probability is below the threshold that the remaining mass gives.
    # Summed from the smallest: a difference of large sums would be rounding alone where nearly all mass is certain.
    mass_after = top.values.flip(1).cumsum(1).flip(1) + probabilities.scatter(1, top.indices, 0.0).sum(1, keepdim=True)
    slots = entries - torch.arange(entries, device=logits.device)
    below = top.values * slots <= mass_after
    certain = torch.where(below.any(1), below.to(torch.int8).argmax(1), entries)
    is_certain = torch.arange(entries, device=logits.device) < certain.unsqueeze(1)
    rest = probabilities.scatter(1, top.indices, torch.where(is_certain, 0.0, top.values))
    cumulative = rest.cumsum(1)
    total = cumulative[:, -1:]
    threshold = total / (entries - certain).clamp(min=1).unsqueeze(1)
    draw = torch.arange(entries, device=logits.device) - certain.unsqueeze(1)
    points = ((draw + uniforms.to(logits.device).unsqueeze(1)) * threshold).clamp(min=0.0)
    points = torch.minimum(points, total * (1 - 1e-15))
    drawn = torch.searchsorted(cumulative, points, right=True).clamp_(max=vocabulary - 1)
    ids = torch.where(is_certain, top.indices, drawn)
    log_weights = torch.where(is_certain, top.values, threshold).log().float()
    absent = torch.isneginf(log_weights)
    ids = torch.nn.functional.pad(ids.masked_fill(absent, -1), (0, k - entries), value=-1)
    log_weights = torch.nn.functional.pad(log_weights, (0, k - entries), value=-torch.inf)
    return ids.to(torch.int32), log_weights.clamp_(max=0.0)


def position_uniforms(seed: int, dialogue_id: str, positions: int) -> np.ndarray:
    """Give one float64 number in [0, 1) for each position of a dialogue, the same in whatever batch it is read."""
    key = hashlib.sha256(f"{seed} {dialogue_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "little"))).random(positions)
