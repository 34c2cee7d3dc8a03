"""From a fusion to the champion and back, with the embedded MLflow and Prefect's own server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from flows.command_line import application
from flows.fusechat import fusechat
from flows.promote import promote, rollback
from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError
from fusion_core.recipes import load_recipe
from tasks.registry.lineage import read_lineage
from tasks.registry.promotion import Promotion, PromotionError, judge_version, move_champion
from tasks.registry.register import FusionResult
from tasks.registry.reproduce import check_reproduction, write_reproduction
from tasks.registry.versions import version_by_alias
from tasks.resolve import resolve_fusion
from tasks.runs.tracking import Tracking
from tasks.store.workplace import open_workplace

NAME = "promoted"


@pytest.fixture(scope="module")
def recipe(recipe_file: Path) -> FusionConfig:
    values = load_recipe(recipe_file).model_dump(exclude_unset=True)
    return FusionConfig.model_validate(values | {"registry": {"model_name": NAME}})


def change(recipe: FusionConfig, **sections: object) -> FusionConfig:
    return FusionConfig.model_validate(recipe.model_dump(exclude_unset=True) | sections)


@pytest.fixture(scope="module")
def first(place: Path, prefect_server: None, recipe: FusionConfig) -> FusionResult:
    return fusechat(recipe)


@pytest.fixture(scope="module")
def second(first: FusionResult, recipe: FusionConfig) -> FusionResult:
    """The same targets merged in another way: another version, hardly another model."""
    return fusechat(change(recipe, merge={"method": "linear"}))


@pytest.fixture
def client(first: FusionResult) -> MlflowClient:
    return Tracking(open_workplace().settings, "fuseline").client


@pytest.fixture(autouse=True)
def no_champion(client: MlflowClient, first: FusionResult) -> None:
    """Every test begins with two candidates and no champion."""
    for alias in ("champion", "previous"):
        if version_by_alias(client, NAME, alias) is not None:
            client.delete_registered_model_alias(NAME, alias)
    client.set_registered_model_alias(NAME, "candidate", first.model_version)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run a command in this process."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(application, arguments)


def aliases(client: MlflowClient) -> dict[str, str | None]:
    return {alias: version_by_alias(client, NAME, alias) for alias in ("champion", "previous", "candidate")}


def test_the_first_champion_has_beaten_the_pivot(client: MlflowClient, first: FusionResult) -> None:
    shown = promote(NAME, dry_run=True)
    assert shown.outcome == "dry run" and shown.decision.passed
    assert aliases(client) == {"champion": None, "previous": None, "candidate": first.model_version}
    promotion = promote(NAME)
    (gate,) = promotion.decision.gates
    assert promotion.outcome == "promoted" and gate.rival == "pivot stories" and gate.low > 0
    row, pivot = (first.files.summary.scores.row(name).overall for name in ("fused", "stories"))
    # The table cuts each dialogue where all models end together, the gate where these two do.
    assert gate.candidate == pytest.approx(row.nats_per_byte, rel=0.01)
    assert gate.other == pytest.approx(pivot.nats_per_byte, rel=0.01)
    assert aliases(client) == {"champion": first.model_version, "previous": None, "candidate": None}
    tags = client.get_model_version(NAME, first.model_version).tags
    assert tags["promotion.outcome"] == "promoted"
    assert f"{gate.low:+.4f}" in tags["promotion.must_beat.nats_per_byte.pivot stories"]
    assert client.get_run(first.fusion_run).data.tags["promotion.outcome"] == "promoted"
    assert promote(NAME, first.model_version).outcome == "unchanged"


def test_a_version_no_better_is_refused_and_can_be_forced_and_taken_back(
    client: MlflowClient, first: FusionResult, second: FusionResult
) -> None:
    promote(NAME, first.model_version)
    refused = promote(NAME, second.model_version)
    assert refused.outcome == "refused" and "does not beat version" in refused.reason
    assert aliases(client)["champion"] == first.model_version
    with pytest.raises(ConfigError, match="reason"):
        promote(NAME, second.model_version, force=True)
    forced = promote(NAME, second.model_version, force=True, reason="wanted for a test")
    assert (forced.champion, forced.previous) == (second.model_version, first.model_version)
    assert client.get_model_version(NAME, second.model_version).tags["promotion.reason"] == "wanted for a test"
    assert rollback(NAME, "it was worse").champion == first.model_version
    assert aliases(client)["previous"] == second.model_version
    assert client.get_model_version(NAME, second.model_version).tags["promotion.rolled_back"] == "it was worse"


def test_of_two_promotions_one_loses_clearly(client: MlflowClient, first: FusionResult, second: FusionResult) -> None:
    judged = [judge_version(NAME, result.model_version) for result in (first, second)]
    assert move_champion(judged[0]).promoted
    with pytest.raises(PromotionError, match="lost to another promotion"):
        move_champion(judged[1])
    assert aliases(client)["champion"] == first.model_version


def answer(flow_run: str, values: dict[str, object]) -> None:
    """Resume a paused flow as Prefect's page does."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as prefect:
        while True:
            run = prefect.read_flow_run(flow_run)
            if run.state is not None and run.state.is_paused():
                break
            threading.Event().wait(0.2)
        prefect.resume_flow_run(flow_run, run_input=values)


@pytest.mark.parametrize(("approve", "outcome"), [(True, "promoted"), (False, "declined")])
def test_a_person_has_the_last_word_in_prefects_page(
    client: MlflowClient, recipe: FusionConfig, second: FusionResult, approve: bool, outcome: str
) -> None:
    again = fusechat(change(recipe, merge={"method": "linear"}, promotion={"approval": "manual"}))
    assert again.model_version == second.model_version
    seen: list[threading.Thread] = []

    def on_running(flow: object, flow_run: object, state: object) -> None:
        values = {"approve": approve, "name": "Ada", "reason": "not today"}
        seen.append(threading.Thread(target=answer, args=(str(flow_run.id), values)))
        seen[-1].start()

    promotion: Promotion = promote.with_options(on_running=[on_running])(NAME, again.model_version)
    seen[0].join()
    assert (promotion.outcome, promotion.decided_by) == (outcome, "Ada")
    assert aliases(client)["champion"] == (again.model_version if approve else None)
    assert promotion.reason == "not today" or approve


def test_nobody_answers(recipe: FusionConfig, second: FusionResult, command: Callable[..., Result]) -> None:
    promotion = {"approval": "manual", "approval_timeout_hours": 1.5 / 3600}
    again = fusechat(change(recipe, merge={"method": "linear"}, promotion=promotion))
    declined = promote(NAME, again.model_version)
    assert declined.outcome == "declined" and "nobody answered within" in declined.reason
    # A command that cannot ask says so, before anything is done.
    result = command("promote", NAME, "--version", again.model_version)
    assert isinstance(result.exception, ConfigError) and "add --yes" in str(result.exception)
    done = command("promote", NAME, "--version", again.model_version, "--yes")
    assert done.exit_code == 0, done.output
    assert f"version {again.model_version} is champion" in done.output


def test_lineage_walks_back_to_the_data(
    first: FusionResult, recipe: FusionConfig, command: Callable[..., Result]
) -> None:
    found = read_lineage(NAME, first.model_version)
    # Every setting, for another version has other defaults.
    assert "where_pivot_wins: label" in found.record.recipe
    stages: dict[str, set[str]] = {}
    nodes = [found.tree]
    while nodes:
        node = nodes.pop()
        assert node.held and node.run
        stages.setdefault(node.stage, set()).add(node.subject)
        nodes += node.inputs
    assert stages == {
        "merge": {"fused"},
        "train": {"bytes-400", "bytes-700"},
        "fuse": {"bytes-400", "bytes-700"},
        "extract": {"stories", "bytes-400", "bytes-700"},
        "prepare": {"train"},
    }
    fusion = resolve_fusion(recipe)
    assert [model.digest for model in found.record.models] == [fusion.pivot.digest, *(s.digest for s in fusion.sources)]
    assert found.record.dataset_digest == fusion.dataset_digest
    assert found.record.packages["torch"] and len(found.record.code.files) == 32
    text = command("lineage", NAME, first.model_version).output
    for word in ("bytes-700", "shards", fusion.dataset_digest, found.record.address):
        assert word in text
    as_json = command("lineage", NAME, first.model_version, "--json").stdout
    assert json.loads(as_json)["tree"]["address"] == found.record.address


def test_reproduction_gives_the_same_address(first: FusionResult, tmp_path: Path) -> None:
    made = write_reproduction(NAME, first.model_version, tmp_path / "again")
    assert resolve_fusion(load_recipe(made.recipe)).merged() == made.address
    assert check_reproduction(made, NAME, first.model_version) == []
    # The recipe gives the pivot a template from a file, which is written beside it.
    assert (tmp_path / "again" / "chat_template_stories.jinja").is_file()
    assert "precision: float32" in made.recipe.read_text() or "precision: bfloat16" in made.recipe.read_text()
    assert made.command in made.commands.read_text()
    changed = made.recipe.read_text().replace("top_k: 8", "top_k: 4")
    made.recipe.write_text(changed)
    assert check_reproduction(made, NAME, first.model_version)
    with pytest.raises(ConfigError, match="says something else"):
        write_reproduction(NAME, first.model_version, tmp_path / "again")


def test_unknown_versions_are_a_users_mistake(first: FusionResult, command: Callable[..., Result]) -> None:
    for arguments in (["lineage", NAME, "99"], ["promote", "nothing"], ["rollback", NAME]):
        result = command(*arguments)
        assert isinstance(result.exception, (ConfigError, PromotionError)), result.output
