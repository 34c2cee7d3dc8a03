"""An embedded MLflow of the module's own, with an experiment for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.runs.tracking import Tracking
from tasks.store.workplace import Workplace, open_workplace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place of its own, with an embedded MLflow."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "FUSELINE_S3_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("FUSELINE_HOME", str(folder))
        yield folder


@pytest.fixture
def workplace(home: Path) -> Workplace:
    return open_workplace()


@pytest.fixture
def tracking(workplace: Workplace, request: pytest.FixtureRequest) -> Tracking:
    """An experiment for each test."""
    return workplace.tracking(request.node.name)
