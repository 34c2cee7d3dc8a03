"""What can be wrong with a model that its files tell before its weights are read."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerBase

from fusion_core.errors import MergeError, ModelError, TokenizerError
from fusion_core.merging.checkpoint import Checkpoint
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import read_model_config


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
