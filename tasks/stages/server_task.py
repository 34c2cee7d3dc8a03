"""What a stage's task has on a Prefect server besides: assets, and a second try when a server failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect import Task
from prefect.assets import Asset, AssetProperties
from prefect.tasks import MaterializingTask, exponential_backoff

from fusion_core.errors import StoreError
from tasks.store.publication import Artifact
from tasks.store.s3_errors import is_transient, is_unreachable
from tasks.store.workplace import open_workplace

RETRIES = 2
RETRY_SECONDS = exponential_backoff(backoff_factor=10)


def on_a_server(stage: Task[..., Any], address: str, arguments: Iterable[Any]) -> MaterializingTask[..., Any]:
    """Return the stage's task with the asset it makes, those it reads, and retries.

    Parameters
    ----------
    stage : Task
        The plain task.
    address : str
        Where in the object store its result goes.
    arguments : iterable
        Of the call; artifacts among them, also in lists and dictionaries, are what the asset is made from.
    """
    made_from = sorted({artifact.address for value in arguments for artifact in _artifacts(value)})
    return MaterializingTask(
        fn=stage.fn,
        assets=[_asset(address)],
        asset_deps=[_asset(known) for known in made_from if known != address],
        name=stage.name,
        task_run_name=stage.task_run_name,
        cache_policy=stage.cache_policy,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_SECONDS,
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_pass_by_itself,
    )


def _artifacts(value: Any) -> list[Artifact]:
    if isinstance(value, Artifact):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in _artifacts(item)] if isinstance(value, (list, tuple)) else []


def _asset(address: str) -> Asset:
    kind, _, digests = address.partition("/")
    url = open_workplace().store.url(address)
    # An address is the same in every store, and has none of the characters that a key must not have.
    return Asset(key=f"fuseline://{address}", properties=AssetProperties(name=f"{kind} {digests[:12]}", url=url))


def _may_pass_by_itself(task: Task[..., Any], run: Any, state: Any) -> bool:
    """Say whether a failed try may succeed if repeated: servers and networks fail, a user's mistake stays one."""
    error = state.data
    if isinstance(error, StoreError):
        return error.__cause__ is not None and (is_transient(error.__cause__) or is_unreachable(error.__cause__))
    return isinstance(error, ConnectionError)
