"""Which process a fusion's MLflow run belongs to: a killed one's run is continued, a living one's left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tasks.runs.tracking import Tracking, plain_errors
from tasks.store.interface import Store
from tasks.store.lock import StoreLock, abandoned_locks, owner_is_gone

IDENTITY = "fuseline.identity"
STORE = "fuseline.store"
STAGE = "fuseline.stage"
FUSION = "fusion"
RUN_LOCK = "run-"


@contextmanager
def owned_run(tracking: Tracking, store: Store, name: str, identity: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Yield this process's run of a fusion: one that ended early with the same identity, else a new one.

    A run belongs to whoever holds its lock in the object store. It ends FINISHED, FAILED when the block raises, or
    KILLED when it is interrupted; a process that is killed outright leaves it RUNNING, and the next fusion that looks
    at it closes it or goes on with it.
    """
    run_id, lock = _claim(tracking, store, name, identity, tags)
    try:
        with tracking.ending(run_id):
            _close_abandoned(tracking, store)
            _clear_abandoned(tracking, store)
            yield run_id
    finally:
        lock.release()


def _claim(
    tracking: Tracking, store: Store, name: str, identity: str, tags: Mapping[str, str]
) -> tuple[str, StoreLock]:
    for run in _unfinished(tracking, f"tags.`{IDENTITY}` = '{identity}' and attributes.status != 'FINISHED'"):
        run_id = str(run.info.run_id)
        lock = StoreLock(store, _lock_name(run_id))
        if not lock.try_acquire():
            continue
        try:
            with plain_errors(tracking.settings):
                finished = tracking.client.get_run(run_id).info.status == "FINISHED"
            if not finished:
                tracking.continue_run(run_id)
                _close_children(tracking, run_id)
                tracking.log(run_id, tags=dict(tags))
                return run_id, lock
        except BaseException:
            lock.release()
            raise
        lock.release()
    while True:
        run_id = tracking.start_run(name, {**tags, STAGE: FUSION, IDENTITY: identity, STORE: store.url("")})
        lock = StoreLock(store, _lock_name(run_id))
        # Another process of the same fusion may find the new run before it is locked, and go on with it.
        if lock.try_acquire():
            return run_id, lock


def _close_abandoned(tracking: Tracking, store: Store) -> None:
    """Close the other fusions of this store whose process on this machine is gone; nobody may ever continue them."""
    for run in _unfinished(tracking, f"tags.`{STAGE}` = '{FUSION}' and attributes.status = 'RUNNING'"):
        name = _lock_name(run.info.run_id)
        if run.data.tags.get(STORE) != store.url("") or not owner_is_gone(store, name):
            continue
        lock = StoreLock(store, name)
        if lock.try_acquire():
            try:
                _close_children(tracking, run.info.run_id)
                tracking.end_run(run.info.run_id, "KILLED")
            except BaseException:
                # Without its lock nobody would see that the run is to be closed.
                lock.abandon()
                raise
            lock.release()


def _clear_abandoned(tracking: Tracking, store: Store) -> None:
    """Remove what killed processes of this machine left in the store: half written objects, and locks.

    The lock of a run that MLflow still shows as running stays, as a sign that the run is to be closed.
    """
    store.remove_abandoned()
    for name in abandoned_locks(store):
        if name.startswith(RUN_LOCK) and _is_running(tracking, name.removeprefix(RUN_LOCK)):
            continue
        lock = StoreLock(store, name)
        if lock.try_acquire():
            lock.release()


def _is_running(tracking: Tracking, run_id: str) -> bool:
    try:
        return bool(tracking.client.get_run(run_id).info.status == "RUNNING")
    except MlflowException:  # of another MLflow, or deleted
        return True


def _close_children(tracking: Tracking, run_id: str) -> None:
    children = _unfinished(tracking, f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'")
    for child in children:
        tracking.end_run(child.info.run_id, "KILLED")


def _unfinished(tracking: Tracking, condition: str) -> list[Run]:
    with plain_errors(tracking.settings):
        return list(
            tracking.client.search_runs(
                [tracking.experiment_id], condition, max_results=1000, order_by=["attributes.start_time DESC"]
            )
        )


def _lock_name(run_id: str) -> str:
    return f"{RUN_LOCK}{run_id}"
