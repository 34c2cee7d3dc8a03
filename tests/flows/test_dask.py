"""One fusion on Dask: on workers that the run starts itself, and on a cluster of two of which one dies in mid-run."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.flows.clusters import PROJECT, digest, run

pytestmark = pytest.mark.slow

pytest.importorskip("prefect_dask", reason="needs the extra dask: pip install -e '.[dask]'")


def test_a_fusion_on_dask_ends_right_although_a_worker_dies(
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefect_url: str,
) -> None:
    from distributed import LocalCluster

    alone = digest(run(recipe_file, tmp_path / "alone"))
    settings = {"PREFECT_API_URL": prefect_url, "FUSELINE_TASK_RUNNER": "dask", "FUSELINE_TASK_WORKERS": "2"}
    assert digest(run(recipe_file, tmp_path / "own-workers", **settings)) == alone

    home = tmp_path / "cluster"
    monkeypatch.setenv("FUSELINE_HOME", str(home))  # the workers inherit these
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        died = threading.Event()

        def kill_in_mid_run() -> None:
            while not list((home / "work").glob("*.part-*")):
                time.sleep(0.05)
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
            died.set()

        threading.Thread(target=kill_in_mid_run, daemon=True).start()
        merged = run(recipe_file, home, **settings, FUSELINE_TASK_CLUSTER=cluster.scheduler_address)
        assert died.is_set()
        assert digest(merged) == alone
        assert not list((home / "work").glob("*.part-*"))
