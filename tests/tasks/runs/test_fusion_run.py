"""Which MLflow run a fusion works in: its own, one that ended early, never one that a living process has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion_core.errors import TrainingError, TrainingInterruptedError
from tasks.runs.inputs import log_datasets
from tasks.runs.ownership import owned_run
from tasks.runs.tracking import ATTEMPT, ERROR, Tracking
from tasks.store.folder import FolderStore
from tasks.store.publication import Publication
from tasks.store.workplace import COMPUTED_BY, Stage, Workplace, compute_once


def status(tracking: Tracking, run: str) -> str:
    return str(tracking.client.get_run(run).info.status)


def runs(tracking: Tracking) -> dict[str, str]:
    """Name and status of every run of the experiment."""
    found = tracking.client.search_runs([tracking.experiment_id])
    return {run.info.run_name: run.info.status for run in found}


def fail(tracking: Tracking, store: FolderStore, error: BaseException) -> str:
    with (
        pytest.raises(type(error)),
        owned_run(tracking, store, "mine", "a", {}) as run,
        tracking.stage_run(run, "train x", "train", "targets/x"),
    ):
        raise error
    return run


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (TrainingError("The loss is not finite."), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (TrainingInterruptedError("Asked to stop."), "KILLED"),
    ],
    ids=["failed", "interrupted", "stopped"],
)
def test_an_ended_fusion_goes_on_in_its_runs(
    tracking: Tracking, workplace: Workplace, error: BaseException, ended: str
) -> None:
    first = fail(tracking, workplace.store, error)
    assert runs(tracking) == {"mine": ended, "train x": ended}
    assert tracking.client.get_run(first).data.tags[ERROR] == (str(error) or "KeyboardInterrupt")
    with owned_run(tracking, workplace.store, "mine", "a", {}) as second:
        assert second == first and status(tracking, second) == "RUNNING"
        with tracking.stage_run(second, "train x", "train", "targets/x") as child:
            tracking.log_points(child, [("loss", 1.0, 0, 7)])
    assert runs(tracking) == {"mine": "FINISHED", "train x": "FINISHED"}
    tags = tracking.client.get_run(first).data.tags
    assert tags[ATTEMPT] == "2" and ERROR not in tags
    assert list(workplace.store.list("locks")) == []


def test_a_finished_fusion_run_again_has_a_run_of_its_own(tracking: Tracking, workplace: Workplace) -> None:
    made = []
    for identity in ("a", "a", "b"):
        with owned_run(tracking, workplace.store, "mine", identity, {}) as run:
            made.append(run)
    assert len(set(made)) == 3


def test_a_living_process_keeps_its_run(tracking: Tracking, workplace: Workplace) -> None:
    with (
        owned_run(tracking, workplace.store, "mine", "a", {}) as first,
        owned_run(tracking, workplace.store, "mine", "a", {}) as second,
    ):
        assert first != second
        assert status(tracking, first) == status(tracking, second) == "RUNNING"


KILLED = """
    import os, signal
    from tasks.runs.ownership import owned_run
    from tasks.store.workplace import open_workplace
    place = open_workplace()
    tracking = place.tracking({experiment!r})
    with owned_run(tracking, place.store, {name!r}, {identity!r}, {{}}) as run:
        with tracking.stage_run(run, "train x", "train", "targets/x"):
            print(run, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def kill(tracking: Tracking) -> Callable[[str, str], str]:
    """Return a function that leaves a fusion's run as a killed process leaves it."""

    def leave(name: str, identity: str) -> str:
        program = textwrap.dedent(KILLED.format(experiment=tracking.experiment, name=name, identity=identity))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        return done.stdout.strip()

    return leave


def test_after_a_kill_the_rerun_leaves_one_fusion_and_nothing_running(
    tracking: Tracking, workplace: Workplace, kill: Callable[[str, str], str]
) -> None:
    other, mine = kill("other", "b"), kill("mine", "a")
    # Whoever comes next closes what a killed process of another recipe left open.
    assert (status(tracking, other), status(tracking, mine)) == ("KILLED", "RUNNING")
    with owned_run(tracking, workplace.store, "mine", "a", {}) as run:
        assert run == mine
        running = tracking.client.search_runs([tracking.experiment_id], "status = 'RUNNING'")
        assert {found.info.run_id for found in running} == {mine}
        with tracking.stage_run(run, "train x", "train", "targets/x"):
            pass
    found = tracking.client.search_runs([tracking.experiment_id])
    assert sorted((r.info.run_name, r.info.status) for r in found) == [
        ("mine", "FINISHED"),
        ("other", "KILLED"),
        ("train x", "FINISHED"),
        ("train x", "KILLED"),
    ]


def publish(workplace: Workplace, run: str | None, address: str, inputs: tuple[str, ...], experiment: str) -> None:
    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, object]:
        (folder / "x").write_text(address)
        publication.add("x", folder / "x")
        return {"dialogues": 3}

    stage = Stage(address.split("/")[0], "train", address, inputs, run, experiment, uses_device=False)
    compute_once(workplace, stage, compute)


def test_a_found_stage_links_the_run_that_computed_it(tracking: Tracking, workplace: Workplace) -> None:
    name = tracking.experiment
    with owned_run(tracking, workplace.store, "mine", "a", {}) as first:
        publish(workplace, first, "datasets/d/train", (), name)
        publish(workplace, first, "distributions/m/d/s", ("datasets/d/train",), name)
    with owned_run(tracking, workplace.store, "mine", "a", {}) as second:
        publish(workplace, second, "distributions/m/d/s", ("datasets/d/train",), name)
        log_datasets(tracking, second, workplace.store, [])
    assert COMPUTED_BY + "distributions.train" not in tracking.client.get_run(first).data.tags
    computing = tracking.client.get_run(second).data.tags[COMPUTED_BY + "distributions.train"]
    run = tracking.client.get_run(computing)
    assert run.data.tags["mlflow.parentRunId"] == first
    (read,) = run.inputs.dataset_inputs
    assert read.dataset.name == "dialogues train" and '"dialogues": 3' in read.dataset.profile
    assert workplace.store.url("datasets/d/train") in read.dataset.source


def test_system_metrics_are_there_and_their_thread_ends(
    tracking: Tracking, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    with owned_run(tracking, workplace.store, "mine", "a", {}) as run:
        with tracking.stage_run(run, "train x", "train", "targets/x") as child:
            assert "SystemMetricsMonitor" in {thread.name for thread in threading.enumerate()}
        assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}
        assert "system/cpu_utilization_percentage" in tracking.client.get_run(child).data.metrics
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        with tracking.stage_run(run, "train y", "train", "targets/y") as child:
            pass
        assert not tracking.client.get_run(child).data.metrics
