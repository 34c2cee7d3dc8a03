"""Models and tokenizers: where they are, and what identifies them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fusion_core.config import ModelConfig
from fusion_core.devices import compute_dtype, default_device
from fusion_core.errors import ModelError, TokenizerError, first_line
from fusion_core.models.digests import digest_of_files, file_names
from fusion_core.models.stored_tensors import stored_tensors

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


def count_parameters(folder: Path) -> int:
    """Count the parameters of a checkpoint from its safetensors headers, without reading weights."""
    return sum(tensor.entries for tensor in stored_tensors(folder).values())


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
        path = model.chat_template.expanduser()
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"Model {model.name!r}: its `chat_template` {model.chat_template} cannot be read ({error})."
        ) from error
