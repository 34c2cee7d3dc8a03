"""Benchmarks in a whole fusion on real small models: found again, shown, logged, and the report of the run anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.fusechat import fusechat
from fusion_core.errors import EvaluationError, TrackingError
from fusion_core.evaluation import exact_match
from fusion_core.recipes import load_recipe
from tasks.registry.register import FusionResult
from tasks.resolve import resolve_fusion
from tasks.runs.report import report_of_run
from tasks.runs.tracking import Tracking
from tasks.store.workplace import open_workplace

# Seven models answer: as long as the fusion itself on a busy machine.
pytestmark = pytest.mark.slow

METRICS = {"exact_match/sums", "pass_at_1/doubles", "chat_sanity/all", "chat_sanity/ends_turn", "chat_sanity/no_loops"}


@pytest.fixture(scope="module")
def recipe_with_benchmarks(recipe_file: Path) -> Path:
    folder = recipe_file.parent
    sums = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(6)]
    doubles = [{"text": "Double a number.", "test_list": ["assert double(2) == 4"], "task_id": 1}]
    for name, rows in (("sums", sums), ("doubles", doubles)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / "benchmarks.yaml"
    text = recipe_file.read_text(encoding="utf-8").replace("name: small", "name: small-benchmarks")
    recipe.write_text(
        f"""{text}
evaluation:
  exact_match: [{{name: sums, path: sums.jsonl, max_new_tokens: 6}}]
  pass_at_1: [{{name: doubles, path: doubles.jsonl, max_new_tokens: 6}}]
  chat_sanity: {{limit: 3, max_new_tokens: 6}}
""",
        encoding="utf-8",
    )
    return recipe


@pytest.fixture(scope="module")
def first_run(place: Path, prefect_server: None, recipe_with_benchmarks: Path) -> FusionResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSELINE_PRICE_PER_HOUR", "3.5")
        return fusechat(load_recipe(recipe_with_benchmarks))


def test_every_model_has_every_metric(first_run: FusionResult) -> None:
    summary = first_run.files.summary
    table = summary.benchmarks
    assert table is not None
    assert {column.metric for column in table.columns} >= METRICS
    assert [row.model for row in table.rows] == [row.model for row in summary.scores.rows]
    assert table.measures("fused").keys() >= METRICS
    assert summary.dialogue_changes is not None
    assert summary.dialogue_changes.better + summary.dialogue_changes.worse > 0
    assert summary.answer_changes is not None


def test_the_run_logs_metrics_versions_and_few_shot_counts(first_run: FusionResult) -> None:
    client = Tracking(open_workplace().settings, "fuseline").client
    parent = client.get_run(first_run.fusion_run)
    assert "exact_match/sums.fused" in parent.data.metrics
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first_run.fusion_run}'")
    (child,) = [run for run in children if run.info.run_name == "evaluate fused on sums"]
    assert child.data.params["task_version"] == exact_match.VERSION
    assert child.data.params["few_shot"] == "0"
    assert "exact_match/sums" in child.data.metrics


def test_a_second_run_asks_no_model(first_run: FusionResult, recipe_with_benchmarks: Path) -> None:
    second = fusechat(load_recipe(recipe_with_benchmarks))
    assert second.files.computed == 0
    assert second.files.summary.benchmarks == first_run.files.summary.benchmarks


def test_the_report_shows_them_and_is_written_anew_from_the_run(first_run: FusionResult) -> None:
    report = first_run.files.folder / "report.html"
    before = report.read_text(encoding="utf-8")
    for words in ("Benchmarks", "doubles", "Dialogues gained and lost", "USD, this run", 'class="radar"'):
        assert words in before
    report.unlink()
    assert report_of_run(first_run.fusion_run) == report
    assert report.read_text(encoding="utf-8") == before
    # The newest run of the recipe, which a second run may have made.
    assert report_of_run("small-benchmarks").name == "report.html"
    with pytest.raises(TrackingError, match="no run 'never-run'"):
        report_of_run("never-run")


def test_a_missing_data_file_is_said_before_anything_runs(recipe_with_benchmarks: Path) -> None:
    config = load_recipe(recipe_with_benchmarks)
    values = config.model_dump(exclude_unset=True)
    values["evaluation"]["exact_match"][0]["path"] = recipe_with_benchmarks.parent / "gone.jsonl"
    with pytest.raises(EvaluationError, match=r"gone\.jsonl does not exist"):
        resolve_fusion(type(config).model_validate(values))
