"""Real MLflow and Prefect servers on loopback with SQLite, and what listens to them, while a test needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.fernet import Fernet
from mlflow.tracking import MlflowClient

from fusion_core.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER_SECONDS = 180
COMMAND_SECONDS = 600
SECRET = "only-for-this-test-of-the-receiver"
Value = TypeVar("Value")

# What `prefect deploy` makes of prefect.yaml, in code: one deployment of re-fusion that runs here.
DEPLOYMENT = """
import sys
from prefect.events import DeploymentEventTrigger
from flows.refusion import refusion

refusion.serve(
    name=sys.argv[3],
    parameters={"recipe": sys.argv[1]},
    cron=sys.argv[2],
    paused=True,
    limit=1,
    triggers=[
        DeploymentEventTrigger(
            name="a source of " + sys.argv[3] + " has landed",
            expect={"fuseline.source.landed"},
            match={"prefect.resource.id": "fuseline.recipe." + sys.argv[3]},
        )
    ],
)
"""


@dataclass
class Servers:
    """Running servers and the environment of processes that use them."""

    folder: Path
    environment: dict[str, str]
    prefect_url: str
    mlflow_url: str
    receiver_url: str
    stack: ExitStack = field(default_factory=ExitStack)

    def fuseline(self, *arguments: str, expect: int = 0) -> str:
        """Run a command of the command line and return what it printed."""
        command = [sys.executable, "-c", "from flows.command_line import main; main()", *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == expect, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    @property
    def mlflow(self) -> MlflowClient:
        """A client of MLflow's server."""
        return MlflowClient(tracking_uri=self.mlflow_url)

    def prefect(self, method: str, path: str, **content: Any) -> Any:
        """Ask Prefect's server as its pages do."""
        answer = httpx.request(method, f"{self.prefect_url}{path}", timeout=60, **content)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, flow: str = "refusion") -> list[dict[str, Any]]:
        """Return the runs of a flow."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "limit": 200}
        return list(self.prefect("POST", "/flow_runs/filter", json=wanted))

    def wait_for_run(self, after: int, seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
        """Wait until one more than `after` runs of re-fusion have ended, and return the one that ended then."""

        def ended() -> dict[str, Any] | None:
            done = [run for run in self.runs() if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
            return sorted(done, key=lambda run: run["end_time"])[after] if len(done) > after else None

        return wait_for(ended, seconds)

    def tasks_of(self, run: dict[str, Any]) -> dict[str, str]:
        """Return the state of each task of the fusions inside a run, by its name."""
        parents = {"any_": [task["id"] for task in self._tasks([run["id"]])]}
        inner = self.prefect("POST", "/flow_runs/filter", json={"flow_runs": {"parent_task_run_id": parents}})
        return {task["name"]: task["state_name"] for task in self._tasks([one["id"] for one in inner])}

    def _tasks(self, runs: list[str]) -> list[dict[str, Any]]:
        wanted = {"task_runs": {"flow_run_id": {"any_": runs}}, "limit": 200}
        return list(self.prefect("POST", "/task_runs/filter", json=wanted))

    def deploy(self, recipe: Path, name: str, cron: str = "* * * * *") -> str:
        """Start a deployment for one recipe, its schedule switched off, and return its id once it listens."""
        arguments = [sys.executable, "-c", DEPLOYMENT, str(recipe), cron, name]
        self.stack.enter_context(process(arguments, self.environment, self.folder / f"deployment-{name}.log"))

        def listens() -> str | None:
            automations = self.prefect("POST", "/automations/filter", json={})
            found = [one for one in automations if one["name"] == f"a source of {name} has landed"]
            return str(found[0]["actions"][0]["deployment_id"]) if found else None

        return wait_for(listens, SERVER_SECONDS)


def wait_for(look: Callable[[], Value | None], seconds: float) -> Value:
    """Look until there is something."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends."""
    with log.open("w") as output:
        running = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@contextmanager
def running_servers(folder: Path) -> Iterator[Servers]:
    """Start MLflow with webhooks, Prefect, and the receiver between them."""
    prefect_port, mlflow_port, receiver_port = free_ports(3)
    programs = Path(sys.executable).parent
    (folder / "prefect").mkdir(parents=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FUSELINE_", "PREFECT_"))},
        "PYTHONPATH": str(REPOSITORY),
        "FUSELINE_HOME": str(folder / "home"),
        "FUSELINE_WEBHOOK_SECRET": SECRET,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    }
    mlflow_environment = {
        **environment,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    prefect_url, mlflow_url = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    receiver_url = f"http://127.0.0.1:{receiver_port}"
    prefect = [str(programs / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)]
    mlflow = [str(programs / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    mlflow += ["--artifacts-destination", str(folder / "artifacts")]
    receiver = [sys.executable, "-c", "from flows.command_line import main; main()", "receiver"]
    with ExitStack() as stack:
        # Its pages ask the server where the browser finds it.
        pages = {"PREFECT_SERVER_UI_API_URL": prefect_url, "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
        stack.enter_context(process(prefect, environment | pages, folder / "prefect.log"))
        stack.enter_context(process(mlflow, mlflow_environment, folder / "mlflow.log"))
        wait_for_answer(f"{prefect_url}/health", folder / "prefect.log")
        wait_for_answer(f"{mlflow_url}/health", folder / "mlflow.log")
        environment |= {"PREFECT_API_URL": prefect_url, "MLFLOW_TRACKING_URI": mlflow_url}
        stack.enter_context(process([*receiver, "--port", str(receiver_port)], environment, folder / "receiver.log"))
        wait_for_answer(f"{receiver_url}/health", folder / "receiver.log")
        yield Servers(folder, environment, prefect_url, mlflow_url, receiver_url, stack)


def wait_for_answer(url: str, log: Path) -> None:
    """Wait until a server answers; fails with the end of its log where it does not."""

    def answers() -> bool | None:
        try:
            return True if httpx.get(url, timeout=5).status_code == 200 else None
        except httpx.HTTPError:
            return None

    try:
        wait_for(answers, SERVER_SECONDS)
    except AssertionError:
        raise AssertionError(log.read_text()[-3000:]) from None
