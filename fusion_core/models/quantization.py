"""Weights rounded to 8 or 4 bits as they are loaded, by bitsandbytes."""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from fusion_core.errors import ConfigError

# With the scales of its blocks.
BYTES_PER_PARAMETER = {"int8": 1.0, "int4": 0.55}


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how transformers loads ``int8`` or ``int4`` weights; products are computed in `dtype`."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def check_quantization(name: str, quantization: str, device: torch.device) -> None:
    """Make sure that a model which is to be quantised can be.

    Raises
    ------
    ConfigError
        bitsandbytes is not installed, or there is no GPU.
    """
    if quantization == "none":
        return
    asked = f"Source {name!r} asks for `quantization: {quantization}`"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{asked}, which needs bitsandbytes; run `pip install -c constraints.txt -e '.[bitsandbytes]'` in the "
            "clone of Fuseline, or remove the setting."
        )
    if device.type != "cuda":
        raise ConfigError(f"{asked}, which needs a CUDA GPU and none is visible; remove the setting.")
