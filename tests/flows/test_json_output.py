"""What scripts read: every ``--json`` is one JSON document on standard output, and nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.command_line import application
from tasks.settings import Settings
from tasks.store.open_store import open_store


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command line in a home of its own and return what standard output holds, read as JSON."""
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "FUSELINE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(application, [*arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def test_the_store_lists_what_is_whole_and_what_is_not(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("cache", "ls", "--json") == {"whole": [], "unfinished": [], "broken": []}
    assert command("cache", "du", "--json") == {"bytes": 0, "objects": 0, "stages": {}}
    piece = tmp_path / "piece"
    piece.write_bytes(b"12345")
    open_store(Settings()).upload("merged/one/model.safetensors", piece)
    assert command("cache", "ls", "--json")["unfinished"] == [{"address": "merged/one", "bytes": 5}]
    assert command("cache", "du", "--json")["stages"] == {"unfinished": {"bytes": 5, "objects": 1}}


def test_scores_and_judged_tables_are_one_document(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SimpleNamespace(model_dump=lambda mode: {"rows": [mode]})
    stored = SimpleNamespace(evaluate=lambda models: table, judge=lambda models: (table,))
    monkeypatch.setattr("tasks.stored_fusion.StoredFusion.open", lambda recipe: stored)
    assert command("evaluate", "any.yaml", "--json") == {"scores": {"rows": ["json"]}, "judged": [{"rows": ["json"]}]}


def test_a_decision_says_whether_the_gates_were_passed(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_core.config import PromotionConfig
    from fusion_core.evaluation.decision import Decision
    from tasks.registry.promotion import Candidacy

    candidacy = Candidacy(
        model_name="small",
        version="2",
        champion=None,
        decision=Decision(candidate="version 2", champion=None, gates=()),
        config=PromotionConfig(),
    )
    monkeypatch.setattr("tasks.registry.promotion.judge_version", lambda model, version: candidacy)
    monkeypatch.setattr("flows.command_line.registry_commands.make_ready", lambda: None)
    said = command("promote", "small", "--dry-run", "--json")
    assert (said["passed"], said["version"], said["decision"]["gates"]) == (True, "2", [])
    assert "config" not in said
