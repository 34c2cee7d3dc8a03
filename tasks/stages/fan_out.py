"""Running a stage for many subjects: one after the other, in threads of this machine, or on a Ray or Dask cluster.

Which, is a setting of the place (FUSELINE_TASK_RUNNER). Data goes through the object store in every case, so a task may
run anywhere that reaches the store and has the models under the same paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from fusion_core.errors import ConfigError
from tasks.settings import Settings
from tasks.stages.stage_task import StageTask, Stored

CLUSTERS = ("ray", "dask")

Key = TypeVar("Key")
Result = TypeVar("Result", bound=Stored)


def task_runner() -> TaskRunner[Any]:
    """Return the runner of a flow's tasks as the environment says.

    Raises
    ------
    ConfigError
        If the runner's package is not installed, or a cluster has no Prefect server to report to.
    """
    settings = Settings()
    if settings.task_runner in CLUSTERS and not settings.prefect_api_url:
        # Without one, every task on the cluster would start an ephemeral server of its own.
        raise ConfigError(
            f"FUSELINE_TASK_RUNNER={settings.task_runner} needs a Prefect server that the cluster reaches; set "
            "PREFECT_API_URL, on the cluster's machines too."
        )
    try:
        if settings.task_runner == "ray":
            from prefect_ray import RayTaskRunner

            return RayTaskRunner(address=settings.task_cluster)
        if settings.task_runner == "dask":
            from prefect_dask import DaskTaskRunner

            workers = {"n_workers": settings.task_workers, "threads_per_worker": 1}
            return DaskTaskRunner(
                address=settings.task_cluster, cluster_kwargs=None if settings.task_cluster else workers
            )
    except ImportError as error:
        raise ConfigError(
            f"FUSELINE_TASK_RUNNER={settings.task_runner} needs a package that is not installed; "
            f"pip install -c constraints.txt -e '.[{settings.task_runner}]'."
        ) from error
    return ThreadPoolTaskRunner(max_workers=settings.task_workers)


def fan_out(stage: StageTask[Any, Result], calls: Mapping[Key, tuple[Any, ...]]) -> dict[Key, Result]:
    """Call a stage with each tuple of arguments and return the results by key, in the order given.

    Where several run at once, all of them end before the first failure is raised, so that what the others computed is
    in the store.
    """
    settings = Settings()
    if settings.task_runner == "in_turn":
        return {key: stage(*arguments) for key, arguments in calls.items()}
    with _share_of_devices(settings):
        futures = {key: stage.submit(*arguments) for key, arguments in calls.items()}
    for future in futures.values():
        future.wait()
    return {key: future.result() for key, future in futures.items()}


def is_cluster() -> bool:
    """Say whether tasks may run on other machines."""
    return Settings().task_runner in CLUSTERS


def _share_of_devices(settings: Settings) -> AbstractContextManager[None]:
    if settings.task_runner != "ray":
        return nullcontext()
    from prefect_ray.context import remote_options

    # Ray starts a task again, on another worker, when its own dies.
    return remote_options(num_cpus=1, num_gpus=settings.task_gpus, max_retries=3)
