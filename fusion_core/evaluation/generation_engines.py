"""Which engine answers on this machine, opened for a checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

from fusion_core.config import ExtractionConfig
from fusion_core.devices import default_device
from fusion_core.evaluation.generation import Generator
from fusion_core.evaluation.generation_transformers import TransformersGenerator
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_tokenizer
from fusion_core.models.placement import load_for_reading, place

Engine = Literal["transformers", "vllm"]


def choose_engine(model: ResolvedModel | None = None) -> Engine:
    """Return what generates on this machine: vLLM where it is installed and has a GPU, else transformers.

    A model that is to be read quantised is read by transformers.
    """
    if model is not None and model.quantization != "none":
        return "transformers"
    return "vllm" if torch.cuda.is_available() and find_spec("vllm") is not None else "transformers"


def open_generator(model: ResolvedModel, *, batch_tokens: int, engine: Engine | None = None) -> Generator:
    """Load a checkpoint for answering, spread over all devices where it is too large for one.

    Parameters
    ----------
    model : ResolvedModel
    batch_tokens : int
        Tokens of one batch, prompts and room for the responses included; vLLM plans its own batches.
    engine : str, optional
        Default: ``choose_engine(model)``.

    Raises
    ------
    ModelError, TokenizerError
        If the checkpoint or its tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(model)
    if (engine or choose_engine(model)) == "vllm":
        from fusion_core.evaluation.generation_vllm import VllmGenerator

        return VllmGenerator(model, tokenizer)
    device = default_device()
    loaded = load_for_reading(model, device, place(model, ExtractionConfig(), device, 1))
    return TransformersGenerator(loaded, tokenizer, model.name, batch_tokens=batch_tokens)
