"""Data files and hub datasets: where their contents are, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues.rows import file_kind, open_binary
from fusion_core.errors import DialogueError, first_line

# Part of every dataset's digest; raised whenever the same files and settings would give other dialogues or shards.
PREPARATION_VERSION = 1
HASH_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class ResolvedFile:
    """One entry of the recipe's ``files`` whose contents are on this machine.

    Parameters
    ----------
    file : DialogueFile
    paths : tuple of Path
        One path for a local file; the files of the train split for a hub dataset.
    digest : str
        SHA-256 over the contents; no part of it depends on names or places.
    revision : str or None
        Commit of a hub dataset.
    """

    file: DialogueFile
    paths: tuple[Path, ...]
    digest: str
    revision: str | None = None


def resolve_file(file: DialogueFile) -> ResolvedFile:
    """Find a local file or fetch a hub dataset at a pinned commit, and hash what it holds.

    Raises
    ------
    DialogueError
        If the file is missing or has an unknown ending, or the hub dataset cannot be fetched.
    """
    revision = None
    if file.hub is not None:
        paths, revision = _fetch(file)
    else:
        paths = (Path(str(file.path)).expanduser(),)
    digest = hashlib.sha256()
    for path in paths:
        # How a file is read follows from its ending, so that much of a name decides the dialogues.
        reading = f"{file_kind(path)} {path.suffix.lower() == '.gz'}"
        content = hashlib.sha256()
        with open_binary(path) as opened:
            while block := opened.read(HASH_BLOCK_BYTES):
                content.update(block)
        digest.update(f"{reading} {content.hexdigest()}\n".encode())
    return ResolvedFile(file, paths, digest.hexdigest(), revision)


def dataset_digest(files: Sequence[ResolvedFile], config: DialoguesConfig) -> str:
    """Return the address of the prepared dialogues, known before they are prepared.

    It covers the contents of the files in their order, the settings of each, and the settings that decide the split
    and the shards. Names and places of files, ``max_quarantined`` (which only decides whether a run stops) and
    ``max_length_tokens`` (which the encoders apply) are no part of it.

    Returns
    -------
    str
        SHA-256 in hex.
    """
    content = {
        "version": PREPARATION_VERSION,
        "files": [[item.digest, item.file.domain, item.file.format, item.file.limit] for item in files],
        "held_out_share": config.held_out_share,
        "held_out_limit": config.held_out_limit,
        "shard_dialogues": config.shard_dialogues,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fetch(file: DialogueFile) -> tuple[tuple[Path, ...], str]:
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi, hf_hub_download

    name = str(file.hub)
    try:
        commit = str(HfApi().dataset_info(name, revision=file.revision).sha)
        splits = load_dataset_builder(name, revision=commit).config.data_files or {}
    except Exception as error:
        raise DialogueError(
            f"Hub dataset {name} cannot be fetched ({first_line(error)}); check the name, the network and HF_TOKEN, "
            "or give a local `path`."
        ) from error
    split = "train" if "train" in splits else next(iter(splits), None)
    if split is None or ("train" not in splits and len(splits) > 1):
        raise DialogueError(
            f"Hub dataset {name} has the splits {', '.join(map(str, splits)) or 'none'}, expected 'train'; download "
            "the files wanted and give each as a local `path`."
        )
    names = [str(address).split(f"@{commit}/", 1)[-1] for address in splits[split]]
    for member in names:
        file_kind(Path(member))
    try:
        paths = tuple(Path(hf_hub_download(name, member, repo_type="dataset", revision=commit)) for member in names)
    except Exception as error:
        raise DialogueError(
            f"Hub dataset {name} cannot be downloaded ({first_line(error)}); check the network and the free disk."
        ) from error
    return paths, commit
