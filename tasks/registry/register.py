"""Stage: the fused model as a version in MLflow's model registry."""

from __future__ import annotations

from pathlib import Path

from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from tasks.addresses import ResolvedFusion
from tasks.registry.mlmodel import publish_loading_files
from tasks.registry.texts import NOTE, run_text, version_tags, version_text
from tasks.registry.versions import ADDRESS, CANDIDATE, CHAMPION, NOT_THERE, version_by_alias
from tasks.runs.plots import log_plots
from tasks.runs.tracking import Tracking, plain_errors
from tasks.stages.summarize import RunFiles
from tasks.store.collection import verify
from tasks.store.interface import BrokenObjectError, Store
from tasks.store.local_files import link_or_copy
from tasks.store.lock import held
from tasks.store.manifest import CARD
from tasks.store.publication import Artifact
from tasks.store.workplace import Workplace, open_workplace

# Registering reads the checkpoint back, which of a large one takes minutes.
LOCK_SECONDS = 1800.0


class FusionResult(BaseModel):
    """What a fusion leaves behind."""

    model_config = ConfigDict(frozen=True)

    model_name: str
    model_version: str
    model_folder: Path
    files: RunFiles
    fusion_run: str | None


def register_model(
    fusion: ResolvedFusion, merged: Artifact, files: RunFiles, fusion_run: str | None = None
) -> FusionResult:
    """Register the fused model, once for each address, after its bytes were read back from the store.

    It becomes the candidate, unless it is the champion already.

    Raises
    ------
    BrokenObjectError
        The store gives back something else than was published.
    TrackingError
        MLflow does not answer.
    """
    workplace = open_workplace()
    config = fusion.config
    tracking = workplace.tracking(config.registry.experiment)
    name = config.registry.model_name or config.name
    folder = _lasting_folder(workplace, merged, files)
    busy = f"Another fusion is registering a version of {name!r}"
    with held(workplace.store, f"register-{name}", busy, LOCK_SECONDS), plain_errors(workplace.settings):
        version = _find_version(tracking, name, merged.address)
        if version is None:
            _require_read_back(workplace.store, merged.address)
            publish_loading_files(workplace.store, merged.address, workplace.folder(merged.address))
            version = _create_version(workplace, tracking, name, merged, fusion_run)
        for key, value in version_tags(fusion, files.summary, fusion_run).items():
            tracking.client.set_model_version_tag(name, version, key, value)
        tracking.client.update_model_version(name, version, version_text(files.summary, name, version))
        if version_by_alias(tracking.client, name, CHAMPION) != version:
            tracking.client.set_registered_model_alias(name, CANDIDATE, version)
    log_plots(tracking, fusion_run, files.summary)
    tracking.log(
        fusion_run,
        tags={
            "fuseline.registered": f"{name} version {version}",
            NOTE: run_text(workplace.store, tracking, files.summary, name, version),
        },
    )
    return FusionResult(model_name=name, model_version=version, model_folder=folder, files=files, fusion_run=fusion_run)


register = task(name="register", task_run_name="register the fused model", cache_policy=NO_CACHE, persist_result=False)(
    register_model
)


def _lasting_folder(workplace: Workplace, merged: Artifact, files: RunFiles) -> Path:
    """Return a verified folder of the checkpoint that stays: the store's own, or one beside the run's report."""
    folder = workplace.folder(merged.address)
    if workplace.store.local_path(merged.address) == folder:
        return folder
    lasting = files.folder / "model"
    lasting.mkdir(exist_ok=True)
    for path in folder.rglob("*"):
        if path.is_file():
            # The local cache keeps its own name for the same bytes, so the checkpoint takes no room twice.
            link_or_copy(path, lasting / path.relative_to(folder))
    link_or_copy(files.folder / CARD, lasting / CARD)
    return lasting


def _find_version(tracking: Tracking, name: str, address: str) -> str | None:
    try:
        tracking.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        tracking.client.create_registered_model(name, description="Fused by Fuseline.")
    versions = tracking.client.search_model_versions(f"name='{name}' and tag.`{ADDRESS}`='{address}'")
    return str(versions[0].version) if versions else None


def _create_version(
    workplace: Workplace, tracking: Tracking, name: str, merged: Artifact, fusion_run: str | None
) -> str:
    source, logged = _source(workplace, tracking, name, merged)
    version = tracking.client.create_model_version(
        name,
        source=source,
        run_id=fusion_run,
        tags={ADDRESS: merged.address, "fuseline.manifest": merged.digest},
        model_id=logged,
    )
    return str(version.version)


def _require_read_back(store: Store, address: str) -> None:
    """Read every object of a checkpoint from the store in pieces and compare it with the manifest."""
    for broken in verify(store, [address]):
        raise BrokenObjectError(broken.address, broken.name, broken.found)


def _source(workplace: Workplace, tracking: Tracking, name: str, merged: Artifact) -> tuple[str, str | None]:
    """Return where the version's weights lie, the store itself wherever MLflow can reach it, and the logged model's id.

    A tracking server cannot read a folder of this machine, and refuses file:// sources, so it gets a copy.
    """
    url = workplace.store.url(merged.address)
    if url.startswith("s3://") or not workplace.settings.tracking_uri.startswith("http"):
        return url, None
    logged = tracking.client.create_logged_model(tracking.experiment_id, name=name)
    tracking.client.log_model_artifacts(logged.model_id, str(workplace.folder(merged.address)))
    tracking.client.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}", str(logged.model_id)
