"""The files of a landed source, on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.errors import ModelError
from fusion_core.models.identity import TOKENIZER_FILES
from tasks.landing.sources import MARKER, LandedSource
from tasks.runs.tracking import plain_errors
from tasks.store.interface import check_key
from tasks.store.local_files import disk_errors, link_or_copy
from tasks.store.owners import is_abandoned, temporary_name
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
    target = workplace.settings.sources_folder / source.id
    with disk_errors(f"Fetching source {source.name} to {target}"), _made_whole(target) as partial:
        if partial is not None and not _from_store(workplace, source, partial):
            _from_mlflow(workplace, config, source, partial)
    return target


@contextmanager
def _made_whole(target: Path) -> Iterator[Path | None]:
    """Yield a folder that takes the target's place when the block ends without an error; None where that is there.

    What processes of this machine left that were killed in such a block is removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in target.parent.iterdir():
        if is_abandoned(path.name):
            shutil.rmtree(path, ignore_errors=True)
    if target.is_dir():
        yield None
        return
    partial = target.with_name(temporary_name())
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(target)
        except OSError:
            # Of two that make it at once the second finds the first one's folder.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    whole = workplace.settings.sources_folder / f"{source.id}-whole"
    with disk_errors(f"Putting source {source.name} together in {whole}"), _made_whole(whole) as partial:
        if partial is not None:
            for path in (*found[0].iterdir(), *tokenizer.iterdir()):
                if path.is_file() and not (partial / path.name).exists():
                    link_or_copy(path, partial / path.name)
    return whole
