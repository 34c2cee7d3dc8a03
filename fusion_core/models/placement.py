"""Where a model that is read lies: on one device, spread over all, or once on each of several.

Neither changes what is computed, beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.utils import is_flash_attn_2_available

from fusion_core.config import ExtractionConfig
from fusion_core.devices import compute_dtype
from fusion_core.errors import ConfigError
from fusion_core.extraction.vllm_backend import check_vllm
from fusion_core.models.identity import ResolvedModel, count_parameters
from fusion_core.models.loading import load_model
from fusion_core.models.quantization import BYTES_PER_PARAMETER, check_quantization

# Of a GPU's memory, for weights; the rest is activations, a chunk of logits and the allocator's own.
SHARE_FOR_WEIGHTS = 0.8


@dataclass(frozen=True)
class Placement:
    """How one model is read.

    Parameters
    ----------
    kind : {"one_device", "spread"}
        What each process does.
    processes : int
        1: this process. More: as many children.
    """

    kind: Literal["one_device", "spread"]
    processes: int = 1


def place(model: ResolvedModel, config: ExtractionConfig, device: torch.device, shards: int) -> Placement:
    """Decide how a model is read.

    Parameters
    ----------
    model : ResolvedModel
    config : ExtractionConfig
    device : torch.device
        Where one device is enough.
    shards : int
        Still to be read; more processes than that would be idle.

    Raises
    ------
    ConfigError
        More replicas are asked for than there are GPUs, or what the model needs to be loaded is not installed.
    """
    if config.backend == "vllm":
        check_vllm()
    check_quantization(model.name, model.quantization, device)
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    kind = config.placement
    if kind == "auto":
        kind = _by_size(model, devices) if devices else "one_device"
    if kind != "replicas":
        return Placement(kind)
    if devices and (config.processes or 0) > devices:
        raise ConfigError(
            f"`extraction.processes: {config.processes}` needs as many GPUs where {devices} are visible; lower it, or "
            "remove it."
        )
    return Placement("one_device", max(1, min(config.processes or devices, shards)))


def _by_size(model: ResolvedModel, devices: int) -> Literal["one_device", "spread", "replicas"]:
    smallest = min(torch.cuda.get_device_properties(number).total_memory for number in range(devices))
    if _weight_bytes(model) > SHARE_FOR_WEIGHTS * smallest:
        return "spread"
    return "replicas" if devices > 1 else "one_device"


def _weight_bytes(model: ResolvedModel) -> float:
    own = compute_dtype(model.dtype, torch.device("cuda")).itemsize
    return count_parameters(model.folder) * BYTES_PER_PARAMETER.get(model.quantization, float(own))


def load_for_reading(model: ResolvedModel, device: torch.device, placement: Placement) -> Any:
    """Load a model in evaluation mode as the placement says; errors as `load_model`."""
    loaded = load_model(model, device, device_map="auto" if placement.kind == "spread" else None)
    half = loaded.dtype in (torch.float16, torch.bfloat16)
    if device.type == "cuda" and half and is_flash_attn_2_available() and _supports_flash_attention(loaded):
        loaded.set_attn_implementation("flash_attention_2")
    return loaded


def _supports_flash_attention(model: Any) -> bool:
    return bool(getattr(model, "_supports_flash_attn", False)) and model._can_set_attn_implementation()
