"""Models and tokenizers: where they are, what identifies them, and loading them safely."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
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

from fusion_core.config import ModelConfig
from fusion_core.devices import compute_dtype, default_device
from fusion_core.errors import MergeError, ModelError, TokenizerError, first_line
from fusion_core.merging.checkpoint import Checkpoint
from fusion_core.model_digests import digest_of_files, file_names
from fusion_core.quantization import quantization_config

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# What a tokenizer is made from where there is no tokenizer.json.
TOKENIZER_SOURCES = ("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are on this machine and whose identity is known.

    Parameters
    ----------
    name : str
        What tables call it; no part of the digest.
    folder : Path
        Checkpoint folder.
    digest : str
        SHA-256 over weights, config, tokenizer, chat template and trusted code (and the hub commit): whatever decides
        its outputs.
    tokenizer_digest : str
        SHA-256 over the tokenizer and chat template alone.
    revision : str or None
        Commit of a hub model.
    """

    name: str
    folder: Path
    digest: str
    tokenizer_digest: str
    revision: str | None = None
    chat_template: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    quantization: str = "none"


def resolve_model(model: ModelConfig) -> ResolvedModel:
    """Fetch a hub model at a pinned commit, or check a local folder, and compute its digests.

    Raises
    ------
    ModelError
        If the folder is missing, has no config or no safetensors, or the hub cannot be reached.
    """
    revision = None
    if model.hub is not None:
        folder, revision = _fetch(model)
    else:
        folder = Path(str(model.path)).expanduser()
    _check_folder(model.name, folder)
    template = _read_template(model)
    tokenizer_files: tuple[str, ...] = TOKENIZER_FILES
    if not (folder / "tokenizer.json").is_file():
        tokenizer_files += file_names(folder, TOKENIZER_SOURCES)
    tokenizer_digest = digest_of_files(folder, tokenizer_files, extra=template or "")
    # 'auto' means another precision on another machine, and precision decides what the model answers.
    dtype = str(compute_dtype(model.dtype, default_device())).removeprefix("torch.")
    deciding = ("config.json", *file_names(folder, ("*.safetensors",)))
    extra = f"{tokenizer_digest} {revision or ''}"
    if model.trust_remote_code:
        deciding += file_names(folder, ("*.py",))
        extra += " with its own code"
    digest = digest_of_files(folder, deciding, extra)
    return ResolvedModel(
        model.name,
        folder,
        digest,
        tokenizer_digest,
        revision,
        template,
        dtype,
        model.trust_remote_code,
        model.quantization,
    )


def check_checkpoint(model: ResolvedModel) -> None:
    """Make sure that a model's configuration and the headers of its weights can be read, without reading weights.

    Raises
    ------
    ModelError
        If config.json is none or of an unknown architecture, or a safetensors file is missing, cut off or broken.
    """
    read_model_config(model)
    try:
        Checkpoint.open(model.folder)
    except MergeError as error:
        raise ModelError(f"Model {model.name!r}: {error}") from error


def check_tokenizer_fits(model: ResolvedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that every token has a row in the model's embedding.

    Raises
    ------
    TokenizerError
        If it has not: the tokenizer belongs to another model, or tokens were added after the weights were saved.
    """
    rows = getattr(read_model_config(model).get_text_config(), "vocab_size", None)
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows is not None and last >= rows:
        raise TokenizerError(
            f"Model {model.name!r}: token {token!r} of its tokenizer has the id {last} where its embedding has {rows} "
            f"rows; put the model's own tokenizer into {model.folder}, or remove the added tokens."
        )


def check_own_code(model: ResolvedModel) -> None:
    """Make sure that a trusted model's code lies in its own folder, which its digest covers and its copies carry.

    Raises
    ------
    ModelError
        If its configuration names code of another repository.
    """
    for name in ("config.json", "tokenizer_config.json") if model.trust_remote_code else ():
        path = model.folder / name
        own = json.loads(path.read_text(encoding="utf-8")).get("auto_map", {}) if path.is_file() else {}
        for reference in own.values():
            for part in reference if isinstance(reference, list) else [reference]:
                if "--" in str(part):
                    raise ModelError(
                        f"Model {model.name!r}: {path} takes its code from another repository ({part}); put that "
                        "repository's .py files beside it and remove what stands before '--'."
                    )


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


def count_parameters(folder: Path) -> int:
    """Count the parameters of a checkpoint from its safetensors headers, without reading weights."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                total += size
    return total


def _check_folder(name: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(
            f"Model {name!r}: the folder {folder} does not exist; correct `path` of this model in the recipe."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"Model {name!r}: {folder} has no config.json; `path` must be a Hugging Face checkpoint folder."
        )
    if not any(path.is_file() for path in folder.glob("*.safetensors")):
        raise ModelError(
            f"Model {name!r}: {folder} has no *.safetensors; convert the weights to safetensors, other formats "
            "are not read."
        )


def _fetch(model: ModelConfig) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = HfApi().model_info(str(model.hub), revision=model.revision).sha
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", *(["*.py"] if model.trust_remote_code else [])]
        folder = snapshot_download(str(model.hub), revision=commit, allow_patterns=patterns)
    except Exception as error:
        raise ModelError(
            f"Model {model.name!r}: {model.hub} cannot be fetched from the hub ({first_line(error)}); check the "
            "name, the network and HF_TOKEN, or give a local `path`."
        ) from error
    return Path(folder), str(commit)


def _read_template(model: ModelConfig) -> str | None:
    if model.chat_template is None:
        return None
    try:
        return model.chat_template.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"Model {model.name!r}: its `chat_template` {model.chat_template} cannot be read ({error})."
        ) from error
