"""The fusion loss: one cross-entropy against a mixture of label and fused distribution, never holding [N, V].

Legend: N response positions, K entries of a distribution, V vocabulary, H hidden size, C positions of one chunk.

The loss ``lm_weight * CE(onehot) + (1 - lm_weight) * CE(P)`` is one cross-entropy whose gradient at the logits is
``softmax(z) - mixture``. So each chunk of logits is turned into its own gradient while it is in memory, and from it
into that of the hidden states and of the output embedding; the backward pass only scales. A fusion step is then a
plain fine-tuning step with K entries more to gather and scatter at a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from fusion_core.errors import TrainingError
from fusion_core.losses.chunks import (
    ChunkBuffers,
    ChunkSettings,
    WeightGradient,
    compiled_chunk,
    products_to_gradient,
)
from fusion_core.losses.mixture import Tail, check_shapes, fused_shares

IGNORED_LABEL = -100
DEFAULT_CHUNK_SIZE = 256

Form = Literal["cross_entropy", "kl"]


@dataclass(frozen=True)
class FusionLoss:
    """The loss and its two parts.

    Parameters
    ----------
    loss : Tensor []
        ``lm_weight * lm_loss + (1 - lm_weight) * fusion_loss``; carries the gradient.
    lm_loss : Tensor []
        Cross-entropy of the labels in nats, without gradient.
    fusion_loss : Tensor []
        Cross-entropy (or KL) to the fused distributions in nats, without gradient.
    """

    loss: Tensor
    lm_loss: Tensor
    fusion_loss: Tensor


def fusion_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_ids: Tensor,
    log_probs: Tensor,
    *,
    lm_weight: float,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    tail: Tail = "renormalise",
    form: Form = "cross_entropy",
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    normaliser: float | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    compiled: bool | None = None,
) -> FusionLoss:
    """Return lm_weight * CE(onehot) + (1 - lm_weight) * CE(P) over the positions that have a label.

    Logits are ``z = cap(logit_scale * (hidden @ weight.T + bias))`` with ``cap(z) = soft_cap * tanh(z / soft_cap)``.
    Products are taken in autocast's precision where autocast is on, else in that of `hidden`; logits, sums over the
    vocabulary and the gradient of `weight` are kept in float32 (float64 for float64 inputs). Gradients are computed
    in the forward pass, only for the inputs that need one, and not at all under ``torch.no_grad``.

    Parameters
    ----------
    hidden : float [N, H]
        Last hidden states at the response positions.
    weight : float [V, H]
        Output embedding; may be frozen.
    labels : int [N]
        Gold next tokens; positions with -100 count nowhere.
    token_ids : int [N, K]
        Entries of the fused distribution, distinct within a row; -1 pads. A row of -1 alone has no fused
        distribution and takes the label alone: its P is the one-hot label, its fusion term the label's cross-entropy.
    log_probs : float [N, K]
        Natural logarithms of their probabilities, normalised over the full vocabulary at temperature 1; -inf pads.
    lm_weight : float
        Share of the label's cross-entropy, lambda, from 0 to 1.
    bias : float [V], optional
        Bias of the output embedding.
    temperature : float
        Softens P; the model itself is read at temperature 1.
    tail : {"renormalise", "bucket", "weights"}
        What P is. renormalise: ``softmax(log_probs / temperature)`` over the entries (the paper). bucket: the mass
        outside the entries is one more class, which the model matches with its own mass outside the entries. weights:
        ``exp(log_probs)`` as they are, importance weights of sampled tokens whose expectation is the whole
        distribution (arXiv 2503.16870); no temperature.
    form : {"cross_entropy", "kl"}
        kl subtracts the entropy of P, so that a perfect fit is 0; gradients are the same.
    logit_scale : float
        Factor on the logits that some architectures have.
    soft_cap : float, optional
        Soft cap on the logits that some architectures have.
    normaliser : float, optional
        What the sums over positions are divided by; default: the positions with a label. For accumulation over
        micro-batches or ranks give the whole batch's count.
    chunk_size : int
        Positions whose logits are in memory at a time.
    compiled : bool, optional
        Whether what lies between a chunk's products and its gradient is compiled; default: on CUDA. Where compilation
        is not available the same lines run one by one.

    Raises
    ------
    TrainingError
        If shapes do not fit, or a setting is out of its range.

    Notes
    -----
    Eq. 3 to 5, arXiv 2402.16107.
    """
    check_shapes(hidden, weight, labels, token_ids, log_probs, bias)
    if not 0 <= lm_weight <= 1 or temperature <= 0 or chunk_size < 1:
        raise TrainingError(
            "The fusion loss takes lm_weight from 0 to 1, temperature above 0 and chunk_size from 1; found "
            f"{lm_weight}, {temperature} and {chunk_size}."
        )
    if tail == "weights" and temperature != 1.0:
        raise TrainingError("`temperature` cannot be applied to importance weights; set it to 1.")
    needs_gradient = torch.is_grad_enabled()
    device = hidden.device.type
    product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if hidden.dtype == torch.float64:
        product_dtype = torch.float64
    loss, lm_loss, fusion_loss, *_ = _fusion_pass(
        hidden,
        weight,
        bias,
        labels,
        token_ids,
        log_probs,
        lm_weight,
        temperature,
        tail,
        form == "kl",
        logit_scale,
        soft_cap,
        normaliser,
        chunk_size,
        product_dtype,
        device == "cuda" if compiled is None else compiled,
        needs_gradient and hidden.requires_grad,
        needs_gradient and weight.requires_grad,
        needs_gradient and bias is not None and bias.requires_grad,
    )
    return FusionLoss(loss, lm_loss.detach(), fusion_loss.detach())


@torch.library.custom_op("fuseline::fusion_pass", mutates_args=())
def _fusion_pass(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    token_ids: Tensor,
    log_probs: Tensor,
    lm_weight: float,
    temperature: float,
    tail: str,
    subtract_entropy: bool,
    logit_scale: float,
    soft_cap: float | None,
    normaliser: float | None,
    chunk_size: int,
    product_dtype: torch.dtype,
    compiled: bool,
    hidden_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # An operator of its own: torch.compile takes it whole instead of breaking the graph around the loop.
    tail_kind = cast(Tail, tail)
    sum_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    labelled = (labels != IGNORED_LABEL).nonzero().squeeze(1)
    rows, labels = hidden[labelled].to(product_dtype), labels[labelled].long()
    shares = fused_shares(token_ids[labelled], log_probs[labelled].to(sum_dtype), labels, temperature, tail_kind)
    divisor = max(len(labels), 1) if normaliser is None else normaliser
    scale = logit_scale / divisor

    def zeros(like: Tensor, wanted: bool) -> Tensor:
        return torch.zeros(like.shape if wanted else (0,), dtype=sum_dtype, device=hidden.device)

    grad_hidden = torch.zeros_like(hidden) if hidden_gradient else hidden.new_empty(0)
    grad_weight = zeros(weight, weight_gradient)
    grad_bias = zeros(weight[:, 0], bias_gradient)
    lm_sum, fusion_sum = (torch.zeros((), dtype=sum_dtype, device=hidden.device) for _ in range(2))
    wants_gradient = hidden_gradient or weight_gradient or bias_gradient
    settings = ChunkSettings(lm_weight, tail_kind, logit_scale, soft_cap)
    weight_sums = WeightGradient(grad_weight)
    # Autocast would cast a second time inside; precision is chosen here. What autograd knows is written below.
    with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
        products_VH = weight.to(product_dtype)
        buffers = None
        if not compiled:
            buffers = ChunkBuffers(min(chunk_size, len(rows)), weight.shape, product_dtype, sum_dtype, hidden.device)
        for start in range(0, len(rows), chunk_size):
            stop = min(start + chunk_size, len(rows))
            hidden_CH, chunk_labels, chunk_shares = rows[start:stop], labels[start:stop], shares.rows(start, stop)
            if buffers is None:
                chunk = compiled_chunk(settings, sum_dtype)
                lm_C, fusion_C, grad_CV = chunk(hidden_CH @ products_VH.T, bias, chunk_labels, chunk_shares)
                sums_CV = grad_CV
            else:
                sums_CV = buffers.products(hidden_CH, products_VH)
                lm_C, fusion_C = products_to_gradient(sums_CV, bias, chunk_labels, chunk_shares, settings)
                grad_CV = buffers.rounded(sums_CV) if wants_gradient else sums_CV
            lm_sum += lm_C.sum()
            fusion_sum += fusion_C.sum()
            if bias_gradient:
                grad_bias.add_(sums_CV.sum(0, dtype=sum_dtype), alpha=scale)
            if hidden_gradient:
                grad_hidden[labelled[start:stop]] = (grad_CV @ products_VH).mul_(scale).to(hidden.dtype)
            if weight_gradient:
                weight_sums.add(grad_CV, hidden_CH, scale)
    if subtract_entropy:
        fusion_sum -= shares.entropy()
    lm_loss, fusion_loss = lm_sum / divisor, fusion_sum / divisor
    loss = lm_weight * lm_loss + (1 - lm_weight) * fusion_loss
    return loss, lm_loss, fusion_loss, grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@_fusion_pass.register_fake
def _(hidden, weight, bias, labels, token_ids, log_probs, *settings):
    sum_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    hidden_gradient, weight_gradient, bias_gradient = settings[-3:]
    scalars = [hidden.new_empty((), dtype=sum_dtype) for _ in range(3)]
    return (
        *scalars,
        torch.empty_like(hidden) if hidden_gradient else hidden.new_empty(0),
        torch.empty_like(weight) if weight_gradient else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if bias_gradient else 0),
    )


def _keep_gradients(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])
    ctx.wanted = inputs[-3:]
    ctx.number_of_inputs = len(inputs)


def _scale_gradients(ctx, grad_loss, *_):
    # The gradients already hold the division by the count, so that the factor is 1 unless the caller scales the loss; a
    # product by 1 would cost a second [V, H]. Looking costs a synchronisation on other devices.
    kept = [part if wanted else None for part, wanted in zip(ctx.saved_tensors, ctx.wanted, strict=True)]
    if grad_loss is None:
        kept = [None, None, None]
    elif torch.compiler.is_compiling() or grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:
        kept = [None if part is None else part * grad_loss.to(part.dtype) for part in kept]
    return (*kept, *[None] * (ctx.number_of_inputs - 3))


_fusion_pass.register_autograd(_scale_gradients, setup_context=_keep_gradients)
