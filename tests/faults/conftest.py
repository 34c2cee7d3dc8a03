"""What all fault tests share: a Prefect server, a launcher with everything imported, and one undisturbed run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fusion_core.ports import free_ports
from tests.faults.fusions import Fusions, Timeline, watch
from tests.faults.launcher import REPOSITORY, running_launcher
from tests.flows.conftest import recipe_file  # noqa: F401 - a fixture
from tests.flows.real_servers import process, wait_for_answer


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to: when its stages began, and what it published."""

    timeline: Timeline
    digests: dict[str, str]


@pytest.fixture(scope="session")
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing of the product, and no server, is named."""
    foreign = ("FUSELINE_", "PREFECT_", "MLFLOW_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    folder = tmp_path_factory.mktemp("prefect")
    return kept | {
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    }


@pytest.fixture(scope="session")
def prefect_url(plain_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for all runs: an ephemeral one each would take most of the time."""
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("prefect-log") / "log"
    program = str(Path(sys.executable).parent / "prefect")
    command = [program, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with process(command, plain_environment, log):
        wait_for_answer(f"http://127.0.0.1:{port}/api/health", log)
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="session")
def fault_recipe(recipe_file: Path) -> Path:  # noqa: F811
    """The small recipe with a checkpoint after every step of training and no control."""
    text = recipe_file.read_text(encoding="utf-8")
    changed = text.replace("epochs: 1,", "epochs: 1, checkpoint_steps: 1, keep_checkpoints: 2,")
    assert changed != text
    path = recipe_file.with_name("faults.yaml")
    path.write_text(f"{changed}evaluation: {{plain_sft_control: false, bootstrap_resamples: 20}}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def fusions(
    plain_environment: dict[str, str], prefect_url: str, fault_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fusions]:
    """Runs of the recipe, with MLflow's tables made beforehand."""
    environment = plain_environment | {"PREFECT_API_URL": prefect_url}
    root = tmp_path_factory.mktemp("homes")
    with running_launcher(environment) as launcher:
        first = Fusions(launcher, fault_recipe, root, environment)
        template = root / "mlflow.db"
        home = first.home("template")
        pid = launcher.start(["sources", str(fault_recipe)], home.environment, home.folder / "log")
        assert launcher.wait(pid) == 0, (home.folder / "log.err").read_text()
        (home.folder / "mlflow.db").rename(template)
        yield replace(first, template=template)


@pytest.fixture(scope="session")
def undisturbed(fusions: Fusions) -> Undisturbed:
    """One run to the end, watched."""
    home = fusions.home("undisturbed")
    pid = fusions.start(home)
    timeline = watch(home, pid)
    outcome = fusions.end(home, pid)
    assert outcome.status == 0, outcome.errors[-3000:]
    assert home.temporaries() == []
    return Undisturbed(timeline, home.digests())
