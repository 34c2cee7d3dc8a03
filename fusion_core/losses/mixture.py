"""Shares of the fused distribution, and a chunk of logits turned into its cross-entropies and gradient.

Legend: N positions, C positions of one chunk, K entries of a distribution, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fusion_core.errors import TrainingError

Tail = Literal["renormalise", "bucket", "weights"]


class Shares(NamedTuple):
    """The fused distribution P of every position.

    Parameters
    ----------
    token_ids : int64 [N, K]
        Pads repeat an entry of their row, so that they index something harmless.
    values : float [N, K]
        What P gives to each entry; 0 at pads.
    is_entry : bool [N, K]
        False at pads.
    tail : float [N]
        What P gives to all other tokens together; 0 unless the tail is a class of its own.
    """

    token_ids: Tensor
    values: Tensor
    is_entry: Tensor
    tail: Tensor

    def rows(self, start: int, stop: int) -> Shares:
        """Return the positions from start to stop."""
        return Shares(*(part[start:stop] for part in self))

    def entropy(self) -> Tensor:
        """Return the sum over positions of the entropy of P in nats."""
        return torch.special.entr(self.values).sum() + torch.special.entr(self.tail).sum()


def fused_shares(token_ids: Tensor, log_probs: Tensor, labels: Tensor, temperature: float, tail: Tail) -> Shares:
    """Turn stored entries into P; rows without any entry become the one-hot label.

    Parameters
    ----------
    token_ids : int [N, K]
        -1 pads.
    log_probs : float [N, K]
        -inf pads.
    labels : int64 [N]
    temperature : float
    tail : {"renormalise", "bucket", "weights"}
    """
    if token_ids.shape[1] == 0:
        token_ids, log_probs = token_ids.new_full((len(labels), 1), -1), log_probs.new_full((len(labels), 1), 0.0)
    is_entry = (token_ids >= 0) & (log_probs != -torch.inf)
    bare = ~is_entry.any(1)
    first = torch.zeros_like(is_entry)
    first[:, 0] = True
    from_label = bare[:, None] & first
    is_entry = is_entry | from_label
    ids = torch.where(from_label, labels[:, None], token_ids.long())
    logs = torch.where(from_label, 0.0, log_probs).masked_fill(~is_entry, -torch.inf)
    ids = torch.where(is_entry, ids, ids.masked_fill(~is_entry, -1).amax(1, keepdim=True))
    nothing = logs.new_zeros(len(labels))
    if tail == "weights":
        return Shares(ids, logs.exp(), is_entry, nothing)
    if tail == "renormalise":
        return Shares(ids, torch.softmax(logs / temperature, 1), is_entry, nothing)
    outside = (1 - logs.exp().sum(1)).clamp_min(0)
    classes = torch.softmax(torch.cat([logs, outside.log()[:, None]], 1) / temperature, 1)
    return Shares(ids, classes[:, :-1], is_entry, classes[:, -1])


def cross_entropies_then_gradient(
    logits_CV: Tensor, labels: Tensor, shares: Shares, lm_weight: float, tail: Tail
) -> tuple[Tensor, Tensor]:
    """Return both cross-entropies of each position and leave the gradient of their mixture in `logits_CV`.

    Parameters
    ----------
    logits_CV : float [C, V]
        Overwritten by d(lm_weight * lm + (1 - lm_weight) * fusion) / d logits.
    labels : int64 [C]
    shares : Shares of C positions
    lm_weight : float
    tail : {"renormalise", "bucket", "weights"}
        What `shares` were made with.

    Returns
    -------
    lm, fusion : float [C]
    """
    labels_C1 = labels[:, None]
    gold = logits_CV.gather(1, labels_C1).squeeze(1)
    entries = logits_CV.gather(1, shares.token_ids)
    covered = shares.values.sum(1)
    weighted = (shares.values * entries).sum(1)
    fusion_weight = 1 - lm_weight
    if tail != "bucket":
        log_total = _log_sum_then_softmax(logits_CV)
        fusion = covered * log_total - weighted
        if tail == "weights":
            # The softmax weighs as much as the target's total mass, which is 1 but for importance weights.
            logits_CV *= (lm_weight + fusion_weight * covered)[:, None]
        logits_CV.scatter_add_(1, shares.token_ids, -fusion_weight * shares.values)
    else:
        logits_CV.scatter_(1, shares.token_ids, -torch.inf)
        log_outside = _log_sum_then_softmax(logits_CV)
        if shares.token_ids.shape[1] >= logits_CV.shape[1]:
            # Where every token is an entry nothing is left outside: no softmax, and -inf as the logarithm of the sum.
            empty = log_outside.isnan()
            logits_CV.masked_fill_(empty[:, None], 0.0)
            log_outside = log_outside.masked_fill(empty, -torch.inf)
        log_entries = torch.logsumexp(entries.masked_fill(~shares.is_entry, -torch.inf), 1)
        log_total = torch.logaddexp(log_outside, log_entries)
        log_tail = log_outside - log_total
        # Rounding may leave P a trace outside where there is no token outside.
        counts = (shares.tail > 0) & (log_tail > -torch.inf)
        fusion = covered * log_total - weighted - torch.where(counts, shares.tail * log_tail, 0.0)
        logits_CV *= (log_tail.exp() - fusion_weight * shares.tail)[:, None]
        gradient = (entries - log_total[:, None]).exp() - fusion_weight * shares.values
        logits_CV.scatter_add_(1, shares.token_ids, gradient.masked_fill(~shares.is_entry, 0.0))
    logits_CV.scatter_add_(1, labels_C1, torch.full_like(gold, -lm_weight)[:, None])
    return log_total - gold, fusion


def _log_sum_then_softmax(logits_CV: Tensor) -> Tensor:
    # log of the sum of exponentials from the largest logit and its probability: one pass less than logsumexp.
    largest = logits_CV.amax(1)
    torch.softmax(logits_CV, 1, out=logits_CV)
    return largest - logits_CV.amax(1).log()


def check_shapes(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_ids: Tensor, log_probs: Tensor, bias: Tensor | None
) -> None:
    """Refuse arrays that do not belong together.

    Raises
    ------
    TrainingError
        If any shape does not fit the others.
    """
    found = (
        f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, labels {list(labels.shape)}, "
        f"token_ids {list(token_ids.shape)}, log_probs {list(log_probs.shape)}"
        + ("" if bias is None else f", bias {list(bias.shape)}")
    )
    fits = (
        hidden.ndim == 2
        and weight.ndim == 2
        and hidden.shape[1] == weight.shape[1]
        and labels.shape == hidden.shape[:1]
        and token_ids.ndim == 2
        and token_ids.shape == log_probs.shape
        and len(token_ids) == len(hidden)
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        raise TrainingError(
            "The fusion loss needs hidden [N, H], weight [V, H], labels [N], token_ids and log_probs [N, K] and "
            f"bias [V]; found {found}."
        )
