"""Twenty fusions at once on one store, one MLflow and one Prefect with a limit on devices: all end right."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.fusions import Fusions
from tests.faults.test_outages import mlflow_server

pytestmark = pytest.mark.slow

LIMIT = "gpu"
SLOTS = 2
# Several runs of each recipe at once: some meet at one address, others at none.
VARIANTS = 5
ON_A_DEVICE = ("extract", "train", "evaluate")


def spans_of(client, kinds: tuple[str, ...]) -> list[tuple[int, int]]:
    """Begin and end of every stage that uses a device, in milliseconds."""
    experiment = client.get_experiment_by_name("fuseline")
    found, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        found += [run.info for run in page if run.data.tags.get("fuseline.stage") in kinds]
        token = page.token
        if not token:
            return [(info.start_time, info.end_time) for info in found]


def most_at_once(spans: list[tuple[int, int]]) -> int:
    """How many spans overlap at most."""
    # What ends and what begins in one millisecond need not have met.
    moments = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flows", [6, 20])
def test_many_flows_at_once(
    fusions: Fusions, undisturbed: Undisturbed, fault_recipe: Path, prefect_url: str, tmp_path: Path, flows: int
) -> None:
    from mlflow.tracking import MlflowClient

    answer = httpx.post(
        f"{prefect_url}/v2/concurrency_limits/", json={"name": LIMIT, "limit": SLOTS, "active": True}, timeout=30
    )
    assert answer.status_code in (200, 201, 409)
    folder = fault_recipe.parent
    recipes = []
    for variant in range(VARIANTS):
        path = folder / f"variant-{variant}.yaml"
        text = fault_recipe.read_text(encoding="utf-8")
        path.write_text(text.replace("lm_weight: 0.5", f"lm_weight: 0.{5 - variant}"), encoding="utf-8")
        recipes.append(path)
    with mlflow_server(tmp_path, fusions.environment) as server:
        client = MlflowClient(server.url)
        shared = {
            "FUSELINE_STORE": str(tmp_path / "store"),
            "MLFLOW_TRACKING_URI": server.url,
            "FUSELINE_DEVICE_LIMIT": LIMIT,
        }
        begun = []
        for number in range(flows):
            own = replace(fusions, recipe=recipes[number % VARIANTS], template=None)
            home = own.home(f"flow-{flows}-{number}")
            begun.append((own, home, own.start(home, **shared)))
        outcomes = [own.end(home, pid) for own, home, pid in begun]
        for outcome in outcomes:
            assert outcome.status == 0, outcome.errors[-3000:]
            assert "Traceback" not in outcome.errors
        runs = client.search_runs([client.get_experiment_by_name("fuseline").experiment_id], max_results=2000)
        assert {run.info.status for run in runs} == {"FINISHED"}
        fusion_runs = [run for run in runs if run.data.tags.get("fuseline.stage") == "fusion"]
        assert len(fusion_runs) == flows
        assert len(client.search_model_versions("name = 'small'")) == VARIANTS
        assert 1 <= most_at_once(spans_of(client, ON_A_DEVICE)) <= SLOTS
    # The variant that is the recipe itself has the bytes that it has alone, and nobody left anything behind.
    store = replace(begun[0][1], folder=tmp_path)
    found = store.digests()
    assert {key: found.get(key) for key in undisturbed.digests} == undisturbed.digests
    assert store.temporaries() == []
    for _, home, _ in begun:
        assert home.temporaries() == []
        shutil.rmtree(home.folder)
