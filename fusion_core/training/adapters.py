"""Low-rank adapters: trained instead of all weights, and merged into plain weights at the end."""

from __future__ import annotations

from collections.abc import Mapping

import peft
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fusion_core.config import LoraConfig

ADAPTER = "default"
FIRST, SECOND, BASE = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight", ".base_layer."


def add_adapters(language_model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Put an adapter on every linear layer but the output embedding, and freeze everything else; in place.

    Notes
    -----
    Section 4, arXiv 2106.09685.
    """
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules="all-linear",
    )
    # Every process must begin with the same random matrices.
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(settings, language_model, adapter_name=ADAPTER)


def merge_adapters(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return the weights under their plain names, each with ``alpha / rank * B @ A`` added.

    Parameters
    ----------
    state : mapping of float32 tensors
        Weights and adapters by name.
    config : LoraConfig
    """
    merged = {}
    for name, tensor in state.items():
        if name.endswith((FIRST, SECOND)):
            continue
        layer = name.removesuffix(f"{BASE}weight")
        if layer + FIRST in state:
            tensor = tensor + config.alpha / config.rank * (state[layer + SECOND] @ state[layer + FIRST])
        merged[name.replace(BASE, ".")] = tensor
    return merged
