"""Whose a fusion's MLflow run is when processes meet, and when MLflow goes away."""

from __future__ import annotations

import json
import threading

import pytest

from fusion_core.errors import TrackingError
from tasks.runs.ownership import FUSION, RUN_LOCK, STAGE, STORE, owned_run
from tasks.runs.tracking import Tracking
from tasks.store.lock import StoreLock
from tasks.store.owners import host
from tasks.store.workplace import Workplace


def test_a_new_run_that_another_process_locked_first_is_left_to_it(
    tracking: Tracking, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[StoreLock] = []
    start = Tracking.start_run

    def start_and_lose_the_first(self: Tracking, *arguments: object) -> str:
        run = start(self, *arguments)
        if not others:
            others.append(StoreLock(workplace.store, f"{RUN_LOCK}{run}"))
            assert others[0].try_acquire()
        return run

    monkeypatch.setattr(Tracking, "start_run", start_and_lose_the_first)
    with owned_run(tracking, workplace.store, "mine", "a", {}) as run:
        assert others[0].name != f"{RUN_LOCK}{run}"
        assert list(workplace.store.list(f"locks/{RUN_LOCK}{run}"))
    others[0].require()
    others[0].release()


def test_a_killed_fusion_that_could_not_be_closed_is_closed_by_the_next(
    tracking: Tracking, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = workplace.store
    killed = tracking.start_run("other", {STAGE: FUSION, STORE: store.url("")})
    store.write(f"locks/{RUN_LOCK}{killed}/00000001", json.dumps({"host": host()}).encode())
    end = Tracking.end_run

    def end_others(self: Tracking, run: str, status: str) -> None:
        if run == killed:
            raise TrackingError("MLflow did not answer.")
        end(self, run, status)

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "end_run", end_others)
        with pytest.raises(TrackingError, match="answer"), owned_run(tracking, store, "mine", "a", {}):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lock ")]
    assert tracking.client.get_run(killed).info.status == "RUNNING"
    with owned_run(tracking, store, "mine", "a", {}):
        pass
    assert tracking.client.get_run(killed).info.status == "KILLED"
    assert list(store.list("locks")) == []
