"""The same flow against real servers: an S3 store, an MLflow server and a Prefect server, all on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fusion_core.ports import free_ports

pytestmark = pytest.mark.slow

SERVER_SECONDS = 180
RUN_SECONDS = 900


@contextmanager
def server(command: list[str], url: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server until the block ends; fails with its log when it does not answer."""
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + SERVER_SECONDS
            while True:
                try:
                    if httpx.get(url, timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(30)


def test_the_same_command_uses_the_servers_it_is_given(
    recipe_file: Path, tmp_path: Path, s3_bucket: dict[str, str]
) -> None:
    environment = {**os.environ, "FUSELINE_HOME": str(tmp_path / "home"), **s3_bucket}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")
    (tmp_path / "prefect").mkdir()
    folder = Path(sys.executable).parent
    prefect_port, mlflow_port = free_ports(2)
    prefect_url, mlflow_url = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    prefect_command = [str(folder / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)]
    mlflow_command = [
        *(str(folder / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
        *("--artifacts-destination", str(tmp_path / "artifacts")),
    ]
    mlflow_environment = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        server(prefect_command, f"{prefect_url}/health", environment, tmp_path / "prefect.log"),
        server(mlflow_command, f"{mlflow_url}/health", mlflow_environment, tmp_path / "mlflow.log"),
    ):
        environment |= {"PREFECT_API_URL": prefect_url, "MLFLOW_TRACKING_URI": mlflow_url}
        fuseline = [sys.executable, "-c", "from flows.command_line import main; main()"]
        first = subprocess.run(
            [*fuseline, "run", str(recipe_file)], env=environment, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        assert first.returncode == 0, first.stderr[-3000:]
        second = subprocess.run(
            [*fuseline, "run", str(recipe_file)], env=environment, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        assert "nothing to compute" in second.stdout, second.stderr[-3000:]
        states = httpx.post(f"{prefect_url}/flow_runs/filter", json={}).json()
        assert [state["state_name"] for state in states] == ["Completed", "Completed"]
        tasks = httpx.post(f"{prefect_url}/task_runs/filter", json={"limit": 200}).json()
        states_of = {
            name: sorted(t["state_name"] for t in tasks if t["name"] == name) for name in {t["name"] for t in tasks}
        }
        for name in ("prepare dialogues", "extract stories", "train target-bytes-400", "merge targets"):
            assert states_of[name] == ["Cached", "Completed"]
        folder = next(Path(line.split()[1]) for line in first.stdout.splitlines() if line.startswith("model:"))
        assert {"config.json", "README.md", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        version = httpx.get(
            f"{mlflow_url}/api/2.0/mlflow/model-versions/get", params={"name": "small", "version": "1"}
        ).json()["model_version"]
        assert version["source"].startswith("s3://")
    assert not (tmp_path / "home" / "store").exists()
    assert not (tmp_path / "home" / "mlflow.db").exists()
