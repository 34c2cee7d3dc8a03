"""What is known of a model without reading its weights: parameters, layers, and what one token costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fusion_core.config import ModelConfig
from fusion_core.errors import ModelError, first_line
from fusion_core.models.stored_tensors import stored_tensors
from fusion_core.record import Record

CONFIG_FETCH_SECONDS = 10
EXPERTS_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts")
ACTIVE_EXPERTS_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")


class ModelSize(Record):
    """A model's size; with ``layers`` None only the number of parameters is known.

    Parameters
    ----------
    name : str
    parameters : int
        All parameters; a tied output embedding counts once.
    active_parameters : int
        Parameters that take part in a product for every token: neither the input embedding nor the output embedding,
        and of the experts of a mixture only those that one token is sent to.
    layers, hidden_size, attention_width, intermediate_size, vocabulary : int or None
        ``attention_width`` is heads times head size, ``intermediate_size`` the inner width of all feed-forward parts
        that one token passes in a layer.
    stored_bytes_per_parameter : float
        Of the checkpoint on disk.
    """

    name: str
    parameters: int
    active_parameters: int
    layers: int | None = None
    hidden_size: int | None = None
    attention_width: int | None = None
    intermediate_size: int | None = None
    vocabulary: int | None = None
    stored_bytes_per_parameter: float = 2.0


def read_model_size(model: ModelConfig) -> tuple[ModelSize | None, str | None]:
    """Find a model's size from its config.json alone, a local folder's or the hub's (a few kilobytes).

    Returns
    -------
    ModelSize or None
        None where nothing could be read.
    str or None
        What could not be known and why, in one sentence.

    Raises
    ------
    ModelError
        If a local folder has no readable config.json.
    """
    if model.path is not None:
        folder = model.path.expanduser()
        config = _load_config(model, str(folder))
        stored = _stored_bytes_per_parameter(folder)
        return size_from_config(model.name, config, stored, trust_remote_code=model.trust_remote_code), None
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="fuseline-config-") as scratch:
        try:
            folder = _fetch_config(model, Path(scratch))
        except Exception as error:
            if model.parameters is not None:
                return _size_as_told(model, model.parameters)
            return None, (
                f"Model {model.name!r}: config.json of {model.hub} cannot be fetched from the hub "
                f"({type(error).__name__}), so its size, FLOPs and memory are unknown."
            )
        try:
            config = _load_config(model, str(folder))
            return size_from_config(model.name, config, trust_remote_code=model.trust_remote_code), None
        except ModelError:
            pass
    try:
        information = HfApi().model_info(str(model.hub), revision=model.revision, timeout=CONFIG_FETCH_SECONDS)
        parameters = int(information.safetensors.total)  # type: ignore[union-attr]  # None is caught below
    except Exception as error:
        return None, (
            f"Model {model.name!r}: {model.hub} has an architecture that this version of transformers does not know, "
            f"and the hub does not tell its number of parameters ({type(error).__name__})."
        )
    return ModelSize(name=model.name, parameters=parameters, active_parameters=parameters), (
        f"Model {model.name!r}: {model.hub} has an architecture that this version of transformers does not know; its "
        "FLOPs are taken from all its parameters, which is too much for a mixture of experts, and activations are "
        "left out of its memory."
    )


def _size_as_told(model: ModelConfig, parameters: int) -> tuple[ModelSize, str]:
    active = model.active_parameters or parameters
    return ModelSize(name=model.name, parameters=parameters, active_parameters=active), (
        f"Model {model.name!r}: config.json of {model.hub} cannot be fetched from the hub, so its size is the recipe's "
        "`parameters`, and activations are left out of its memory."
    )


def size_from_config(
    name: str, config: Any, stored_bytes_per_parameter: float | None = None, *, trust_remote_code: bool = False
) -> ModelSize:
    """Count a model's parameters from its configuration, without memory for them.

    Parameters
    ----------
    name : str
    config : transformers.PretrainedConfig
    stored_bytes_per_parameter : float, optional
        Default: the size of the config's dtype.
    trust_remote_code : bool
        Whether code that the model's repository carries may build it.

    Raises
    ------
    ModelError
        If transformers cannot build the architecture.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"Model {name!r}: its architecture cannot be built from config.json: {error}") from error
    text = config.get_text_config()
    embeddings = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    experts_share = _active_experts_share(text)
    total = active = 0.0
    for parameter_name, parameter in model.named_parameters():
        total += parameter.numel()
        if id(parameter) in embeddings:
            continue
        active += parameter.numel() * (experts_share if ".experts." in parameter_name else 1.0)
    hidden = int(text.hidden_size)
    layers = int(text.num_hidden_layers)
    heads = int(text.num_attention_heads)
    attention_width = heads * int(getattr(text, "head_dim", None) or hidden // heads)
    key_value_width = attention_width * int(getattr(text, "num_key_value_heads", None) or heads) // heads
    attention_parameters = hidden * (2 * attention_width + 2 * key_value_width)
    # A gated feed-forward part has three matrices of hidden x intermediate.
    intermediate = max(active / layers - attention_parameters, 0) / (3 * hidden)
    if stored_bytes_per_parameter is None:
        stored_bytes_per_parameter = float(torch.empty((), dtype=_dtype(text), device="meta").element_size())
    return ModelSize(
        name=name,
        parameters=int(total),
        active_parameters=int(active),
        layers=layers,
        hidden_size=hidden,
        attention_width=attention_width,
        intermediate_size=round(intermediate),
        vocabulary=int(text.vocab_size),
        stored_bytes_per_parameter=stored_bytes_per_parameter,
    )


def _fetch_config(model: ModelConfig, scratch: Path) -> Path:
    """Return a folder with a hub model's config.json: the hub's cache, or ``scratch`` with the file in it."""
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(str(model.hub), "config.json", revision=model.revision)
    if isinstance(cached, str):
        return Path(cached).parent
    # One plain request: the hub's own download retries for half a minute where there is no network.
    answer = get_session().get(
        hf_hub_url(str(model.hub), "config.json", revision=model.revision),
        headers=build_hf_headers(),
        timeout=CONFIG_FETCH_SECONDS,
        follow_redirects=True,
    )
    answer.raise_for_status()
    (scratch / "config.json").write_bytes(answer.content)
    return scratch


def _load_config(model: ModelConfig, folder: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        why = first_line(error)
        raise ModelError(f"Model {model.name!r}: config.json in {folder} cannot be read: {why}") from error


def _active_experts_share(config: Any) -> float:
    experts = next((value for field in EXPERTS_FIELDS if (value := getattr(config, field, None))), None)
    active = next((value for field in ACTIVE_EXPERTS_FIELDS if (value := getattr(config, field, None))), None)
    return active / experts if experts and active else 1.0


def _dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _stored_bytes_per_parameter(folder: Path) -> float | None:
    tensors = stored_tensors(folder).values()
    count = sum(tensor.entries for tensor in tensors)
    return sum(tensor.bytes for tensor in tensors) / count if count else None
