"""Moving the champion's alias in MLflow's model registry."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from fusion_core.errors import TrackingError
from tasks.publication import find_artifact
from tasks.register import CANDIDATE
from tasks.tracking import Tracking, plain_errors
from tasks.workplace import open_workplace

CHAMPION = "champion"
PREVIOUS = "previous"


class Decision(BaseModel):
    """Which version is champion now, and which was."""

    model_config = ConfigDict(frozen=True)

    champion: str
    previous: str | None


def move_champion(model_name: str, version: str | None) -> Decision:
    """Give a version the alias ``champion`` and the champion so far the alias ``previous``.

    Raises
    ------
    TrackingError
        If there is no such version, or its checkpoint is no longer whole in the object store.
    """
    workplace = open_workplace()
    client = Tracking(workplace.settings, "fuseline").client
    with plain_errors(workplace.settings):
        if version is None:
            version = version_by_alias(client, model_name, CANDIDATE)
            if version is None:
                raise TrackingError(f"Model {model_name!r} has no candidate; run a fusion, or name a version.")
        try:
            chosen = client.get_model_version(model_name, version)
        except MlflowException as error:
            raise TrackingError(
                f"Model {model_name!r} has no version {version!r} in MLflow; see the registry for those it has."
            ) from error
        address = chosen.tags.get("fuseline.address")
        if address is None or find_artifact(workplace.store, address) is None:
            raise TrackingError(
                f"Version {version} of {model_name!r} has no whole checkpoint in the object store "
                f"({address or 'it was not registered by Fuseline'}); run its recipe again."
            )
        before = version_by_alias(client, model_name, CHAMPION)
        if before is not None and before != version:
            client.set_registered_model_alias(model_name, PREVIOUS, before)
        client.set_registered_model_alias(model_name, CHAMPION, version)
    return Decision(champion=version, previous=before if before != version else None)


def version_by_alias(client: MlflowClient, model_name: str, alias: str) -> str | None:
    """Return the version that has an alias, or None."""
    try:
        return str(client.get_model_version_by_alias(model_name, alias).version)
    except MlflowException:
        return None


make_champion = task(
    name="promote", task_run_name="make {version} champion", cache_policy=NO_CACHE, persist_result=False
)(move_champion)
