"""Loading a model's configuration, tokenizer and weights safely: no pickles, no code that is not trusted."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from fusion_core.devices import compute_dtype
from fusion_core.errors import ModelError, TokenizerError, first_line
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.quantization import quantization_config


def load_tokenizer(model: ResolvedModel) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer, with the recipe's chat template in place of its own where one is given.

    Raises
    ------
    TokenizerError
        If there is no fast tokenizer or no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        raise TokenizerError(
            f"Model {model.name!r}: the tokenizer in {model.folder} cannot be loaded ({first_line(error)}); "
            "the folder needs a tokenizer.json and tokenizer_config.json."
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"Model {model.name!r}: {model.folder} has no fast tokenizer; convert it so that a "
            "tokenizer.json stands beside its config."
        )
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    if not tokenizer.chat_template:
        raise TokenizerError(
            f"Model {model.name!r}: its tokenizer has no chat template; name a Jinja file in the recipe's "
            "`chat_template` of this model."
        )
    return tokenizer


def load_model(
    model: ResolvedModel,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load the weights for reading, in evaluation mode.

    Parameters
    ----------
    model : ResolvedModel
    device : torch.device
    dtype : torch.dtype, optional
        Overrides the recipe's ``dtype``; training asks for float32.
    device_map : str or dict, optional
        Spreads the model over devices, main memory and disk as accelerate does, instead of ``device``.

    Raises
    ------
    ModelError
        If the architecture is unknown, the safetensors hold other tensors than the config asks for, or memory runs out.
    """
    # Its bars for files of a checkpoint would stand between Fuseline's own for stages.
    disable_progress_bar()
    dtype = dtype or compute_dtype(model.dtype, device)
    settings: dict[str, Any] = {}
    if model.quantization != "none":
        settings["quantization_config"] = quantization_config(model.quantization, dtype)
        # What is quantised as it is loaded cannot be moved any more.
        device_map = device_map or {"": device}
    spare_folder = None
    if device_map is not None:
        spare_folder = tempfile.mkdtemp(prefix="fuseline-spread-")
        settings |= {"device_map": device_map, "offload_folder": spare_folder}
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
            # Tensors of another shape are named below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except Exception as error:
        if spare_folder is not None:
            shutil.rmtree(spare_folder, ignore_errors=True)
        raise ModelError(f"Model {model.name!r} in {model.folder} cannot be loaded: {_reason(error)}") from error
    loaded, report = loading
    if spare_folder is not None:
        weakref.finalize(loaded, shutil.rmtree, spare_folder, ignore_errors=True)
    _check_loaded(model, report)
    return loaded.eval() if device_map is not None else loaded.to(device).eval()


def _check_loaded(model: ResolvedModel, report: dict[str, Any]) -> None:
    """Refuse a checkpoint whose tensors are not those that its config asks for."""
    if report["mismatched_keys"]:
        name, stored, expected = sorted(report["mismatched_keys"])[0]
        raise ModelError(
            f"Model {model.name!r}: tensor {name!r} has the shape {tuple(stored)} in the safetensors of {model.folder} "
            f"where its config.json asks for {tuple(expected)}; fetch or save the checkpoint again."
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"Model {model.name!r}: {len(missing)} tensors such as {missing[0]!r} are not in the safetensors of "
            f"{model.folder}; the checkpoint is incomplete or of another architecture."
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        raise ModelError(
            f"Model {model.name!r}: {len(unused)} tensors such as {unused[0]!r} in the safetensors of {model.folder} "
            "have no place in the model that its config.json describes; correct its sizes (such as the number of "
            "layers), or fetch the checkpoint again."
        )


def read_model_config(model: ResolvedModel) -> Any:
    """Read the architecture's configuration without its weights."""
    try:
        return AutoConfig.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        raise ModelError(
            f"Model {model.name!r}: config.json in {model.folder} cannot be read: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    if "trust_remote_code=True" in str(error):
        return (
            "it needs Python code that its repository carries; set `trust_remote_code: true` of this model in the "
            "recipe if you trust its maker."
        )
    return first_line(error)
