"""What a checkpoint folder holds beside its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fusion_core.errors import MergeError, first_line

# Named one by one: a folder may also hold training states, indexes and other people's notes that belong to its weights.
NON_WEIGHT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)


def copy_non_weight_files(source: Path, output: Path) -> list[str]:
    """Copy config, generation config, tokenizer, chat template and licence of a checkpoint folder into another.

    Parameters
    ----------
    source : Path
        Checkpoint folder to copy from; links are followed.
    output : Path
        Folder to copy into; created if missing.

    Returns
    -------
    list of str
        Paths of the copied files within the folder, sorted.
    """
    files = sorted({path for pattern in NON_WEIGHT_FILES for path in source.glob(pattern) if path.is_file()})
    for path in files:
        copy = output / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return [str(path.relative_to(source)) for path in files]


def write_chat_template(folder: Path, template: str | None) -> None:
    """Give a checkpoint folder another chat template than its tokenizer's own; None changes nothing."""
    if template is not None:
        # This file comes before a template in tokenizer_config.json.
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def set_config_dtype(folder: Path, dtype: str) -> None:
    """Write the weights' precision, such as ``bfloat16``, into a checkpoint folder's config.json where there is one."""
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (RecursionError, TypeError, ValueError) as error:
        raise MergeError(f"{path} is not JSON ({first_line(error)}); fetch or save it again.") from error
    # Checkpoints written before transformers 5 say torch_dtype.
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
