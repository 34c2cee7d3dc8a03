"""What a model does between its last hidden state and its logits, found by trying it.

Legend: N positions, H hidden size, V vocabulary.

Architectures differ in a factor, a soft cap and a bias, and name them differently; one name even means a factor in one
family and a divisor in another. So a head is not looked up by class: what the config suggests is computed for a few
positions and must equal the model's own logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from fusion_core.extraction.top_k_logits import LogitTransform

# Config fields of a factor on the logits; whether it multiplies or divides is tried.
SCALE_FIELDS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
SOFT_CAP_FIELDS = ("final_logit_softcapping", "logits_soft_cap")
PROBE_TOKENS = 32


@dataclass(frozen=True)
class OutputHead:
    """A model's body and the product that turns its hidden states into logits.

    Parameters
    ----------
    body : Module
        Called with ``input_ids``, gives ``last_hidden_state``.
    embedding : Module
        Its ``weight`` [V, H], and where there is one its ``bias`` [V], make the logits.
    transform : LogitTransform
    """

    body: nn.Module
    embedding: nn.Module
    transform: LogitTransform

    @property
    def vocabulary(self) -> int:
        """Rows V of the output embedding."""
        return len(self.embedding.get_parameter("weight"))

    @contextmanager
    def loaded(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield weight and bias, brought to where they multiply if they are kept in main memory or on disk."""
        with align_module_device(self.embedding):
            yield _weight_and_bias(self.embedding)


@torch.inference_mode()
def find_output_head(model: Any, input_ids: Tensor) -> OutputHead | None:
    """Find how a causal language model makes its logits, or None where none of the known ways gives them.

    Parameters
    ----------
    model : PreTrainedModel
    input_ids : integer Tensor [T]
        Text to try it on; its first 32 tokens are read.
    """
    embedding = model.get_output_embeddings()
    weight = getattr(embedding, "weight", None)
    if not isinstance(embedding, nn.Module) or weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    probe = input_ids[:PROBE_TOKENS].unsqueeze(0)
    own = model(input_ids=probe, use_cache=False).logits[0].float()
    for body in _bodies(model):
        output = body(input_ids=probe, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != weight.shape[1] or own.shape[-1] != weight.shape[0]:
            continue
        with align_module_device(embedding):
            matrix, bias = _weight_and_bias(embedding)
            states = hidden[0].to(matrix.device).float()
            product = nn.functional.linear(states, matrix.float(), None if bias is None else bias.float())
        for transform in _transforms(model.config):
            if _agree(transform(product).to(own.device), own, weight.dtype):
                return OutputHead(body, embedding, transform)
    return None


def _weight_and_bias(embedding: nn.Module) -> tuple[Tensor, Tensor | None]:
    bias = getattr(embedding, "bias", None)
    return embedding.get_parameter("weight").detach(), None if bias is None else bias.detach()


def _bodies(model: Any) -> list[nn.Module]:
    found = [model.base_model, model.get_decoder() if hasattr(model, "get_decoder") else None]
    unique: list[nn.Module] = []
    for body in found:
        if isinstance(body, nn.Module) and body is not model and body not in unique:
            unique.append(body)
    return unique


def _transforms(config: Any) -> list[LogitTransform]:
    text = config.get_text_config()
    scales = [1.0]
    for name in SCALE_FIELDS:
        value = getattr(text, name, None)
        if value and value != 1.0:
            # First what the config asks for: a plain product may pass for it only where logits are small.
            scales = [1.0 / value, value, *scales] if name == "logits_scaling" else [value, 1.0 / value, *scales]
    caps = [cap for cap in (getattr(text, name, None) for name in SOFT_CAP_FIELDS) if cap]
    return [LogitTransform(scale, cap) for scale, cap in itertools.product(scales, [*caps, None])]


def _agree(found: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    # A half-precision model rounds its logits and the steps before them; float32 differs in the order of its sums.
    tolerance = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    # Masked columns are infinite in the model's own logits and of no use here; what is NaN, extraction refuses by name.
    finite = own.isfinite()
    if not finite.any():
        return True
    size = own[finite].abs().amax().clamp(min=1e-6)
    return bool((found[finite] - own[finite]).abs().amax() <= tolerance * size)
