"""Reading MLflow's model registry: versions, their aliases, and what the run that made a version left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from fusion_core.errors import ConfigError, TrackingError
from tasks.registry.lineage_record import LINEAGE, LineageRecord
from tasks.runs.tracking import Tracking, plain_errors

CANDIDATE = "candidate"
CHAMPION = "champion"
PREVIOUS = "previous"

ADDRESS = "fuseline.address"
# The last fusion that registered the version; MLflow's own field keeps the first.
RUN = "fuseline.run"
VERSIONS_IN_ONE_PAGE = 200
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version that Fuseline registered: where its checkpoint lies, and which run tells of it."""

    name: str
    version: str
    address: str
    run: str | None
    tags: dict[str, str]


def read_version(tracking: Tracking, name: str, version: str) -> RegisteredVersion:
    """Look up a version by its number.

    Raises
    ------
    ConfigError
        There is no such version, or Fuseline did not register it.
    """
    with plain_errors(tracking.settings):
        try:
            found = tracking.client.get_model_version(name, version)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            raise ConfigError(
                f"Model {name!r} has no version {version!r} in MLflow; see the registry for those it has."
            ) from None
    tags = dict(found.tags)
    if ADDRESS not in tags:
        raise ConfigError(f"Version {version} of {name!r} was not registered by Fuseline; name one that was.")
    return RegisteredVersion(name, str(found.version), tags[ADDRESS], tags.get(RUN) or found.run_id, tags)


def search_versions(tracking: Tracking, wanted: str | None = None) -> Iterator[ModelVersion]:
    """Go through all registered versions, or those that a filter of MLflow's takes, however many there are."""
    token = None
    while True:
        with plain_errors(tracking.settings):
            page = tracking.client.search_model_versions(wanted, max_results=VERSIONS_IN_ONE_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def version_by_alias(client: MlflowClient, name: str, alias: str) -> str | None:
    """Return the version that has an alias, or None."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return None


def read_record(tracking: Tracking, version: RegisteredVersion) -> LineageRecord:
    """Return what a version was made from.

    Raises
    ------
    TrackingError
        Its run is gone, or says nothing of it.
    """
    text = run_artifact(tracking, version.run, LINEAGE)
    if text is None:
        raise TrackingError(
            f"The run of version {version.version} of {version.name!r} is gone from MLflow, or has no {LINEAGE}; run "
            "its recipe again."
        )
    try:
        return LineageRecord.model_validate_json(text)
    except ValidationError as error:
        raise TrackingError(
            f"The {LINEAGE} of version {version.version} of {version.name!r} cannot be read ({error.error_count()} "
            "fields); run its recipe again."
        ) from error


def run_artifact(tracking: Tracking, run: str | None, name: str) -> str | None:
    """Return a text that a run keeps, None where there is no such run or text."""
    if run is None:
        return None
    with plain_errors(tracking.settings), tempfile.TemporaryDirectory(prefix="fuseline-") as folder:
        try:
            if name not in {file.path for file in tracking.client.list_artifacts(run)}:
                return None
            return Path(tracking.client.download_artifacts(run, name, folder)).read_text(encoding="utf-8")
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            return None
