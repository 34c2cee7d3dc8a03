"""Turns a stage function into a Prefect task whose state says whether its result was found in the store."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, get_type_hints

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed

from fusion_core.errors import FusionError
from tasks.runs.progress_page import progress_page
from tasks.servers import is_server_away
from tasks.settings import Settings
from tasks.stages.server_task import on_a_server
from tasks.store.interface import BrokenObjectError
from tasks.store.local_files import is_full_disk
from tasks.store.publication import discard
from tasks.store.workplace import open_workplace


class Stored(Protocol):
    """What a stage returns: small, and aware of whether it was computed now."""

    @property
    def reused(self) -> bool: ...

    @property
    def address(self) -> str: ...


Result = TypeVar("Result", bound=Stored)
Value = TypeVar("Value")
Parameters = ParamSpec("Parameters")

# A store that breaks more than this in one run is itself broken.
LARGEST_NUMBER_OF_REPAIRS = 8


class StageTask(Generic[Parameters, Result]):
    """A stage that a flow calls like a function, or submits to its task runner.

    The object store's manifests decide what is cached, so Prefect's own cache is off: two truths would disagree as
    soon as an object is deleted. On a Prefect server the task shows its progress, materializes the asset at its
    address, and tries again when a server or the network failed.
    """

    def __init__(
        self, function: Callable[Parameters, Result], run_name: str, address: Callable[Parameters, str]
    ) -> None:
        functools.update_wrapper(self, function)
        self._address = address
        self._task = task(name=function.__name__, task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False)(
            _told_as_cached(function)
        )

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        """Run the stage now, in the flow's own thread, where training can answer to SIGTERM and Ctrl-C."""
        # Called without it, a task that names its own state would return that state instead of the result.
        state: Any = self._chosen(*args, **kwargs)(*args, return_state=True, **kwargs)
        result: Result = state.result()
        return result

    def submit(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> PrefectFuture[Result]:
        """Hand the stage to the flow's task runner."""
        return self._chosen(*args, **kwargs).submit(*args, **kwargs)

    def _chosen(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Task[..., Any]:
        if not Settings().prefect_api_url:
            return self._task
        return on_a_server(self._task, self._address(*args, **kwargs), [*args, *kwargs.values()])


def stage_task(
    function: Callable[Parameters, Result], run_name: str, address: Callable[Parameters, str]
) -> StageTask[Parameters, Result]:
    """Make a stage function a task; ``address`` says from its arguments where in the store the result goes."""
    return StageTask(function, run_name, address)


def _told_as_cached(function: Callable[Parameters, Result]) -> Callable[Parameters, Any]:
    """Make results that were found in the store end in the state ``Cached``."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:
        with progress_page() if Settings().prefect_api_url else nullcontext():
            result = function(*args, **kwargs)
        if result.reused:
            return Completed(name="Cached", message=f"found whole at {result.address}", data=result)
        return result

    return run


def mend_broken_objects(flow_body: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Make a flow's body start over when the store gives back something else than was published.

    The broken object is discarded first, so the second pass finds everything else and computes only that one again.
    """

    @functools.wraps(flow_body)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        for _ in range(LARGEST_NUMBER_OF_REPAIRS):
            try:
                return flow_body(*args, **kwargs)
            except BrokenObjectError as error:
                print(
                    f"{error.name} of {error.address} is broken ({error.found}); computing it again.", file=sys.stderr
                )
                discard(open_workplace().store, error.address, error.name)
        return flow_body(*args, **kwargs)

    # Prefect reads the types of a flow's parameters, and would look for their names in this module.
    run.__annotations__ = get_type_hints(flow_body)
    run.__dict__["__signature__"] = inspect.signature(flow_body, eval_str=True)
    return run


class PlainErrors(logging.Filter):
    """Takes the traceback off log records of errors that are the user's to mend; their message says everything."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (isinstance(error, FusionError) or is_full_disk(error) or is_server_away(error)):
            record.exc_info = None
            record.exc_text = None
            record.msg, record.args = "%s", (str(error),)
        return True


def log_errors_plainly() -> None:
    """Attach the filter to Prefect's flow and task loggers."""
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, PlainErrors) for existing in logger.filters):
            logger.addFilter(PlainErrors())
