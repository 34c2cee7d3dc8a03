"""A recipe on real servers: fuse, promote, a source is registered, re-fusion starts by itself, roll back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.landing.sources import RECIPE_TAG, SOURCE_TAG
from tests.flows.conftest import make_lab_source, write_dialogues
from tests.flows.real_servers import SECRET, Servers, running_servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GATES = """
evaluation: {plain_sft_control: false}
refusion: {gates: real}
promotion:
  must_beat: [{rival: pivot}]
  must_not_drop_more_than: [{limit: 0.2}]
"""
# Nothing is better than the champion by this much.
OUT_OF_REACH = "  must_beat: [{rival: champion, margin: 5.0, confidence: null}]"
OF_ONE_SOURCE = ("extract", "fuse", "train")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with running_servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture(scope="module")
def sources(recipe_file: Path) -> dict[int, Path]:
    """Good sources that are in no recipe, by the size of their vocabularies."""
    texts = write_dialogues(recipe_file.parent)
    folders = {size: recipe_file.parent / "new" / f"lab-{size}" for size in (300, 350, 450, 500, 550)}
    for size, folder in folders.items():
        make_lab_source(folder, texts, size)
    return folders


def recipe_called(name: str, recipe_file: Path, more: str = GATES) -> Path:
    path = recipe_file.with_name(f"{name}.yaml")
    path.write_text(recipe_file.read_text("utf-8").replace("name: small", f"name: {name}") + more, encoding="utf-8")
    return path


def register_source(servers: Servers, folder: Path, recipe: str, name: str) -> str:
    """Register a checkpoint folder in MLflow with its weights, as a person or another pipeline does."""
    client = servers.mlflow
    experiment = client.get_experiment_by_name("sources")
    experiment_id = client.create_experiment("sources") if experiment is None else experiment.experiment_id
    model = client.create_logged_model(experiment_id, name=name)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {SOURCE_TAG: "true", RECIPE_TAG: recipe}
    source = f"models:/{model.model_id}"
    return str(client.create_model_version(name, source, tags=tags, model_id=model.model_id).version)


def champion(servers: Servers, recipe: str) -> str:
    return str(servers.mlflow.get_model_version_by_alias(recipe, "champion").version)


def test_a_registered_source_is_fused_judged_promoted_and_taken_back(
    servers: Servers, recipe_file: Path, sources: dict[int, Path]
) -> None:
    recipe = recipe_called("story", recipe_file)
    servers.mlflow.create_webhook(
        "fuseline", f"{servers.receiver_url}/mlflow", ["model_version.created", "model_version_tag.set"], secret=SECRET
    )
    servers.fuseline("run", str(recipe))
    servers.fuseline("promote", "story")
    assert champion(servers, "story") == "1"
    deployment = servers.deploy(recipe, "story")

    # Registering is all that anybody does.
    register_source(servers, sources[300], "story", "maths")
    run = servers.wait_for_run(after=0)
    assert (run["state_name"], run["deployment_id"]) == ("Fused", deployment), run["state"]
    assert run["created_by"]["type"] == "AUTOMATION"
    states = servers.tasks_of(run)
    for stage in OF_ONE_SOURCE:
        of_stage = {name: state for name, state in states.items() if name.startswith(f"{stage} ")}
        assert {name for name, state in of_stage.items() if state == "Completed"} == {
            name for name in of_stage if name.endswith("maths-v1")
        }
        assert len(of_stage) >= 3
    assert champion(servers, "story") == "2"
    assert servers.mlflow.get_model_version_by_alias("story", "previous").version == "1"
    assert servers.mlflow.get_model_version("maths", "1").tags["fuseline.state"] == "fused"

    # The same content again, told twice: looked at, and not fused.
    register_source(servers, sources[300], "story", "maths-again")
    servers.mlflow.set_model_version_tag("maths-again", "1", RECIPE_TAG, "story")
    names = {servers.wait_for_run(after=count)["state_name"] for count in (1, 2)}
    assert names == {"NothingNew"}

    # One that the gates refuse leaves the champion alone and is set aside by name.
    recipe.write_text(recipe.read_text("utf-8").replace("  must_beat: [{rival: pivot}]", OUT_OF_REACH), "utf-8")
    register_source(servers, sources[350], "story", "code")
    run = servers.wait_for_run(after=3)
    assert run["state_name"] == "Quarantined"
    assert "gates" in run["state"]["message"]
    assert champion(servers, "story") == "2"
    assert servers.mlflow.get_model_version("code", "1").tags["fuseline.state"] == "quarantined"
    assert "code-v1" in servers.fuseline("sources", str(recipe))

    # What is taken back stays back: no later run undoes it.
    servers.fuseline("rollback", "story")
    assert champion(servers, "story") == "1"
    by_hand = servers.prefect(
        "POST", f"/deployments/{deployment}/create_flow_run", json={"parameters": {"recipe": str(recipe)}}
    )
    run = servers.wait_for_run(after=4)
    assert (run["id"], run["state_name"]) == (by_hand["id"], "NothingNew")
    assert champion(servers, "story") == "1"

    # A person's source, from the form of the deployment; and one that is released from quarantine, by the schedule.
    recipe.write_text(recipe.read_text("utf-8").replace(OUT_OF_REACH, "  must_beat: [{rival: pivot}]"), "utf-8")
    form = {"recipe": str(recipe), "source": {"name": "chat", "path": str(sources[450])}}
    servers.prefect("POST", f"/deployments/{deployment}/create_flow_run", json={"parameters": form})
    assert servers.wait_for_run(after=5)["state_name"] == "Fused"
    servers.fuseline("sources", str(recipe), "--release", "code-v1")
    servers.prefect("PATCH", f"/deployments/{deployment}", json={"paused": False})
    run = servers.wait_for_run(after=6, seconds=200)
    assert run["auto_scheduled"]
    assert (run["state_name"], "code-v1" in run["state"]["message"]) == ("Fused", True), run["state"]
    servers.prefect("PATCH", f"/deployments/{deployment}", json={"paused": True})


def test_sources_that_land_at_once_are_each_fused_once_by_whoever_comes_first(
    servers: Servers, recipe_file: Path, sources: dict[int, Path]
) -> None:
    recipe = recipe_called("crowd", recipe_file)
    servers.fuseline("refusion", str(recipe))
    for size in (500, 550):
        register_source(servers, sources[size], "crowd", f"lab-{size}")
    with ThreadPoolExecutor(2) as pool:
        printed = list(pool.map(lambda _: servers.fuseline("refusion", str(recipe)), range(2)))
    said = [line.partition(":")[0] for text in printed for line in text.splitlines()]
    assert (said.count("Fused"), said.count("NothingNew")) == (1, 1), printed
    versions = servers.mlflow.search_model_versions("name = 'crowd'")
    assert len(versions) == 3
    listed = servers.fuseline("sources", str(recipe), "--json")
    assert listed.count('"state": "fused"') == 4


def test_add_source_tells_prefect_and_the_deployment_fuses(
    servers: Servers, recipe_file: Path, sources: dict[int, Path]
) -> None:
    recipe = recipe_called("told", recipe_file)
    servers.fuseline("refusion", str(recipe))
    servers.deploy(recipe, "told")
    before = len([run for run in servers.runs() if run["state_type"] == "COMPLETED"])
    servers.fuseline("add-source", str(recipe), "lab-300", "--path", str(sources[300]), "--announce")
    run = servers.wait_for_run(after=before)
    assert run["state_name"] == "Fused", run["state"]
    assert "lab-300" in run["state"]["message"]
