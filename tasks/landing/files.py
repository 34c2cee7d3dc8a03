"""The files of a landed source, on this machine."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.errors import ModelError
from fusion_core.models.identity import TOKENIZER_FILES
from tasks.landing.sources import MARKER, LandedSource
from tasks.runs.tracking import plain_errors
from tasks.store.interface import check_key
from tasks.store.local_files import disk_errors, link_or_copy
from tasks.store.workplace import Workplace


def fetch_source(workplace: Workplace, config: FusionConfig, source: LandedSource) -> ModelConfig:
    """Return a landed source as a recipe would name it, its files on this machine; fetched once.

    Raises
    ------
    ModelError
        What it points at holds no checkpoint.
    StoreError, TrackingError
        The place where its files are does not answer.
    """
    if source.fault:
        raise ModelError(source.fault)
    if source.model is not None:
        return source.model
    local = _in_place(workplace, source)
    folder = _fetched(workplace, config, source) if local is None else local
    return ModelConfig(name=source.name, path=_checkpoint_folder(workplace, folder, source))


def _in_place(workplace: Workplace, source: LandedSource) -> Path | None:
    """Return a folder of this machine that needs no copy."""
    if source.origin == "store":
        return workplace.store.local_path(source.files)
    parts = urlsplit(source.files)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path))
    return None


def _fetched(workplace: Workplace, config: FusionConfig, source: LandedSource) -> Path:
    target = workplace.settings.home / "sources" / source.id
    if target.is_dir():
        return target
    partial = target.with_name(f"{source.id}.{uuid.uuid4().hex[:8]}.partial")
    with disk_errors(f"Fetching source {source.name} to {target}"):
        partial.mkdir(parents=True)
        try:
            if not _from_store(workplace, source, partial):
                _from_mlflow(workplace, config, source, partial)
            # Whole or not at all; of two that fetch at once the second finds the first one's folder.
            if not target.is_dir():
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _from_store(workplace: Workplace, source: LandedSource, target: Path) -> bool:
    """Download what lies below a key of the store, or at an address that is in it; False when it is elsewhere."""
    root = f"{workplace.store.url('').rstrip('/')}/"
    if source.origin == "store":
        prefix = source.files
    elif source.files.startswith(root):
        prefix = source.files.removeprefix(root).strip("/")
    else:
        return False
    for info in workplace.store.list(f"{prefix}/"):
        name = info.key.removeprefix(f"{prefix}/")
        if name != MARKER:
            # A server may list keys that would lead out of the folder.
            path = target / check_key(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            workplace.store.download(info.key, path)
    return True


def _from_mlflow(workplace: Workplace, config: FusionConfig, source: LandedSource, target: Path) -> None:
    from mlflow.artifacts import download_artifacts

    name, version = source.reference.removeprefix("models:/").rsplit("/", 1)
    client = workplace.tracking(config.registry.experiment).client
    with plain_errors(workplace.settings):
        address = client.get_model_version_download_uri(name, version)
        download_artifacts(address, dst_path=str(target), tracking_uri=workplace.settings.tracking_uri)


def _checkpoint_folder(workplace: Workplace, folder: Path, source: LandedSource) -> Path:
    """Find the checkpoint: the folder itself, its one subfolder, or the parts of MLflow's transformers flavour."""
    found = sorted(path.parent for path in folder.glob("config.json")) or sorted(
        path.parent for path in folder.glob("*/config.json")
    )
    if not found:
        raise ModelError(
            f"Source {source.name!r} ({source.reference}) points at {source.files}, which holds no config.json; "
            "register a Hugging Face checkpoint folder."
        )
    tokenizer = folder / "components" / "tokenizer"
    if not tokenizer.is_dir() or (found[0] / TOKENIZER_FILES[0]).exists():
        return found[0]
    # Put together in a folder of our own: the one that somebody registered stays as it is.
    whole = workplace.settings.home / "sources" / f"{source.id}-whole"
    with disk_errors(f"Putting source {source.name} together in {whole}"):
        whole.mkdir(parents=True, exist_ok=True)
        for path in (*found[0].iterdir(), *tokenizer.iterdir()):
            if path.is_file() and not (whole / path.name).exists():
                link_or_copy(path, whole / path.name)
    return whole
