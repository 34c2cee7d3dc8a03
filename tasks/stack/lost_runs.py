"""Closing runs whose worker was killed: nobody else would, and they keep the next run of their deployment waiting."""

from __future__ import annotations

from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from tasks.stack.services import POOL

UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def close_lost_runs() -> int:
    """Mark the pool's runs that no process of this machine works on as crashed; returns how many.

    Only for a time when no worker runs: a living one's newest run may have no process yet.
    """
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )
        living = runs_with_a_process()
        lost = [run for run in runs if run.id not in living]
        for run in lost:
            client.set_flow_run_state(run.id, Crashed(message="Its worker was killed; start it again to go on."))
    return len(lost)


def runs_with_a_process() -> set[UUID]:
    """Return the flow runs that processes of this user work on."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and (run := process.environ().get("PREFECT__FLOW_RUN_ID")):
                found.add(UUID(run))
        except (psutil.Error, ValueError, OSError):
            continue
    return found
