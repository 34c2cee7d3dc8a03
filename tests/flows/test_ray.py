"""One fusion on a Ray cluster of two nodes on this machine, one of which dies in mid-run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.test_servers import free_port, server

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
pytest.importorskip("prefect_ray", reason="needs the extra ray: pip install -e '.[ray]'")

COMMAND = [sys.executable, "-c", "from flows.command_line import main; main()"]
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prefect_url(tmp_path: Path) -> Iterator[str]:
    """A Prefect server, to which the tasks on the cluster report."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    (tmp_path / "prefect").mkdir()
    program = str(Path(sys.executable).parent / "prefect")
    command = [program, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, f"{url}/health", environment, tmp_path / "prefect.log"):
        yield url


def run(recipe: Path, home: Path, **settings: str) -> Path:
    """Fuse with a home of its own and return the merged checkpoint's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FUSELINE_", "PREFECT_"))}
    environment = {**kept, "FUSELINE_HOME": str(home), "PYTHONPATH": str(PROJECT), **settings}
    done = subprocess.run(
        [*COMMAND, "run", str(recipe)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Path(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("model:")))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


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
