"""One chunk of logits turned into its cross-entropies and its gradient: in place, or as one compiled function.

Legend: C positions of one chunk, V vocabulary, H hidden size.

Both ways run the same lines. On a processor they run one by one in memory that is allocated once. On CUDA they are
compiled to a few kernels that read the products and write the gradient in the products' own precision, so that a chunk
never exists in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fusion_core.errors import first_line
from fusion_core.losses.mixture import Shares, Tail, cross_entropies_then_gradient

# The second is no dynamo exception: settings share one limit on how often the function is compiled anew.
COMPILATION_ERRORS = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)


class ChunkSettings(NamedTuple):
    """What stays the same from chunk to chunk.

    Parameters
    ----------
    lm_weight : float
    tail : {"renormalise", "bucket", "weights"}
    logit_scale : float
    soft_cap : float or None
    """

    lm_weight: float
    tail: Tail
    logit_scale: float
    soft_cap: float | None


def products_to_gradient(
    products_CV: Tensor, bias: Tensor | None, labels: Tensor, shares: Shares, settings: ChunkSettings
) -> tuple[Tensor, Tensor]:
    """Return both cross-entropies of each position and leave the gradient of their mixture in `products_CV`.

    Parameters
    ----------
    products_CV : float [C, V]
        Hidden states times output embedding; overwritten by the gradient at the logits, without their scale.
    bias : float [V] or None
    labels : int64 [C]
    shares : Shares of C positions
    settings : ChunkSettings

    Returns
    -------
    lm, fusion : float [C]
    """
    logits_CV, soft_cap = products_CV, settings.soft_cap
    if bias is not None:
        logits_CV += bias
    if settings.logit_scale != 1.0:
        logits_CV *= settings.logit_scale
    slope_CV = None
    if soft_cap is not None:
        logits_CV.div_(soft_cap).tanh_()
        slope_CV = 1 - logits_CV**2
        logits_CV *= soft_cap
    lm_C, fusion_C = cross_entropies_then_gradient(logits_CV, labels, shares, settings.lm_weight, settings.tail)
    if slope_CV is not None:
        logits_CV *= slope_CV
    return lm_C, fusion_C


ChunkFunction = Callable[[Tensor, Tensor | None, Tensor, Shares], tuple[Tensor, Tensor, Tensor]]


@lru_cache(maxsize=64)
def compiled_chunk(settings: ChunkSettings, sum_dtype: torch.dtype) -> ChunkFunction:
    """Return a compiled function from products, bias, labels and shares to lm [C], fusion [C] and gradient [C, V].

    The products stay as they are; the gradient has their dtype. Where nothing can be compiled, such as without Triton
    or a C compiler, the same lines run one by one after a warning.
    """

    def chunk(
        products_CV: Tensor, bias: Tensor | None, labels: Tensor, shares: Shares
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient_CV = products_CV.to(sum_dtype, copy=True)
        lm_C, fusion_C = products_to_gradient(gradient_CV, bias, labels, shares, settings)
        return lm_C, fusion_C, gradient_CV.to(products_CV.dtype)

    compiled = torch.compile(chunk, fullgraph=True)
    usable = True

    def compiled_or_plain(
        products_CV: Tensor, bias: Tensor | None, labels: Tensor, shares: Shares
    ) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal usable
        if usable:
            for tensor in (products_CV, labels, *shares):
                # The last chunk is shorter than the others.
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            try:
                return compiled(products_CV, bias, labels, shares)
            except COMPILATION_ERRORS as error:
                usable = False
                reason = first_line(error)
                warnings.warn(f"The fusion loss runs without compilation, which failed: {reason}", stacklevel=2)
        return chunk(products_CV, bias, labels, shares)

    return compiled_or_plain


class ChunkBuffers:
    """Memory of one chunk, allocated once: fresh pages for every chunk cost more than the softmax."""

    def __init__(self, rows: int, shape: torch.Size, product_dtype: torch.dtype, sum_dtype: torch.dtype, device):
        self._mixed = product_dtype != sum_dtype
        self._sums_CV = torch.empty(rows, shape[0], dtype=sum_dtype, device=device)
        if self._mixed:
            self._products_CV = torch.empty(rows, shape[0], dtype=product_dtype, device=device)

    def products(self, hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
        """Return hidden states times output embedding, in the precision of sums."""
        sums_CV = self._sums_CV[: len(hidden_CH)]
        if not self._mixed:
            return torch.mm(hidden_CH, weight_VH.T, out=sums_CV)
        return sums_CV.copy_(torch.mm(hidden_CH, weight_VH.T, out=self._products_CV[: len(hidden_CH)]))

    def rounded(self, sums_CV: Tensor) -> Tensor:
        """Return a chunk of sums in the precision of products."""
        return self._products_CV[: len(sums_CV)].copy_(sums_CV) if self._mixed else sums_CV


class WeightGradient:
    """The output embedding's gradient, summed over chunks in the precision of sums."""

    def __init__(self, sums_VH: Tensor) -> None:
        self.sums_VH = sums_VH
        self._product_VH: Tensor | None = None

    def add(self, gradient_CV: Tensor, hidden_CH: Tensor, scale: float) -> None:
        """Add one chunk's share, a product in the chunk's precision."""
        if gradient_CV.dtype == self.sums_VH.dtype:
            self.sums_VH.addmm_(gradient_CV.T, hidden_CH, alpha=scale)
            return
        if self._product_VH is None:
            self._product_VH = torch.empty(self.sums_VH.shape, dtype=gradient_CV.dtype, device=gradient_CV.device)
        self.sums_VH.add_(torch.mm(gradient_CV.T, hidden_CH, out=self._product_VH), alpha=scale)
