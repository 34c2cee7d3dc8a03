"""One fusion on a Ray cluster of two nodes on this machine, one of which dies in mid-run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.flows.clusters import PROJECT, digest, run

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
pytest.importorskip("prefect_ray", reason="needs the extra ray: pip install -e '.[ray]'")


def test_a_fusion_on_two_nodes_ends_right_although_one_of_them_dies(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_url: str
) -> None:
    from ray.cluster_utils import Cluster

    alone = digest(run(recipe_file, tmp_path / "alone"))
    home = tmp_path / "cluster"
    monkeypatch.setenv("FUSELINE_HOME", str(home))  # the nodes inherit these
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine a nice worker never starts
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        died = threading.Event()

        def kill_in_mid_run() -> None:
            parts = home / "work"
            while not list(parts.glob("*.part-*")):
                time.sleep(0.05)
            doomed.kill_raylet(check_alive=False)
            died.set()

        threading.Thread(target=kill_in_mid_run, daemon=True).start()
        settings = {
            "PREFECT_API_URL": prefect_url,
            "FUSELINE_TASK_RUNNER": "ray",
            "FUSELINE_TASK_CLUSTER": cluster.address,
            "FUSELINE_TASK_WORKERS": "2",
        }
        merged = run(recipe_file, home, **settings)
        assert died.is_set()
        assert digest(merged) == alone
        assert not list((home / "work").glob("*.part-*"))
    finally:
        cluster.shutdown()
