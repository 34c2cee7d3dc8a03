"""The whole flow on real small models: what it leaves behind, and what a second run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.fusechat import fusechat
from fusion_core.recipes import load_recipe
from tasks import plan
from tasks.registry.register import FusionResult
from tasks.runs.tracking import Tracking
from tasks.store.manifest import is_beside_manifest
from tasks.store.publication import read_manifest
from tasks.store.workplace import open_workplace
from tests.flows.conftest import TEMPLATE

MODELS = ["stories", "bytes-400", "bytes-700", "target-bytes-400", "target-bytes-700", "plain-sft", "fused"]


@pytest.fixture(scope="module")
def first_run(place: Path, prefect_server: None, recipe_file: Path) -> FusionResult:
    return fusechat(load_recipe(recipe_file))


def test_every_model_is_scored_on_every_domain(first_run: FusionResult) -> None:
    table = first_run.files.summary.scores
    assert [row.model for row in table.rows] == MODELS
    assert sorted(table.domains) == ["code", "dialogue", "mathematics"]
    for row in table.rows:
        assert 0.1 < row.overall.nats_per_byte < 10, row.model
    # One epoch on the style of the data helps a model that has only read little stories.
    assert table.row("fused").overall.nats_per_byte < table.row("stories").overall.nats_per_byte
    assert table.row("plain-sft").overall.nats_per_byte < table.row("stories").overall.nats_per_byte


def test_everything_published_is_whole(first_run: FusionResult) -> None:
    place = open_workplace()
    keys = [info.key for info in place.store.list("")]
    addresses = {key.removesuffix("/manifest.json") for key in keys if key.endswith("/manifest.json")}
    # Two parts of the data, three models read, two pairs fused, two targets and the control, the merge, seven scored.
    assert len(addresses) == 2 + 3 + 2 + 3 + 1 + 7
    for address in addresses:
        place.folder(address)
    # Beside what manifests list there are only the model card and what MLflow loads the checkpoint by.
    listed = {
        f"{address}/{entry.name}" for address in addresses for entry in read_manifest(place.store, address).entries
    }
    loose = {key for key in keys if not key.endswith("/manifest.json")} - listed
    beside = {key.removeprefix(f"{first_run.files.summary.model('fused').origin}/") for key in loose}
    assert {"README.md", "MLmodel", "components/tokenizer/tokenizer.json"} <= beside
    assert all(is_beside_manifest(name) for name in beside)


def test_merged_checkpoint_loads_in_plain_transformers_and_speaks(first_run: FusionResult) -> None:
    folder = first_run.model_folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    assert len(ids) > prompt["input_ids"].shape[1]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("Once upon a time")
    assert (folder / "generation_config.json").exists()
    # The recipe gives the pivot a template that its own tokenizer lacks.
    assert tokenizer.chat_template == TEMPLATE
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("bytes-400", "bytes-700", "varm", "nats"):
        assert word in card


def test_merge_weights_sum_to_one_for_every_tensor(first_run: FusionResult) -> None:
    merge = first_run.files.summary.merge
    weights = torch.tensor(list(merge.weights.values()), dtype=torch.float64)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64), atol=1e-6, rtol=0)
    assert (weights > 0.02).all()


def test_mlflow_holds_runs_metrics_and_the_registered_version(first_run: FusionResult) -> None:
    client = Tracking(open_workplace().settings, "fuseline").client
    parent = client.get_run(first_run.fusion_run)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["training.lm_weight"] == "0.5"
    summary = first_run.files.summary
    assert parent.data.metrics["nats_per_byte.fused"] == pytest.approx(
        summary.scores.row("fused").overall.nats_per_byte
    )
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first_run.fusion_run}'")
    kinds = {child.data.tags["fuseline.stage"] for child in children}
    assert kinds == {"prepare", "extract", "fuse", "train", "merge", "evaluate"}
    assert all(child.info.status == "FINISHED" for child in children)
    version = client.get_model_version(first_run.model_name, first_run.model_version)
    assert version.source == open_workplace().store.url(version.tags["fuseline.address"])
    artifacts = {artifact.path for artifact in client.list_artifacts(first_run.fusion_run)}
    assert artifacts >= {"report.html", "recipe.yaml", "lineage.json", "plan.md", "summary.json", "README.md"}
    plots = {artifact.path for artifact in client.list_artifacts(first_run.fusion_run, "plots")}
    assert plots >= {"plots/loss.svg", "plots/merge weights of bytes-400.svg"}
    assert {one.dataset.name for one in parent.inputs.dataset_inputs} == {"dialogues train", "dialogues held_out"}
    assert f"small version {first_run.model_version}" in parent.data.tags["mlflow.note.content"]
    trained = next(child for child in children if child.info.run_name == "train target-bytes-400")
    assert len(client.get_metric_history(trained.info.run_id, "lm_loss")) >= 1
    assert [one.dataset.name for one in trained.inputs.dataset_inputs] == ["fused distributions of bytes-400"]


def test_report_opens_without_a_network(first_run: FusionResult) -> None:
    html = (first_run.files.folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in html
    assert "target-bytes-400" in html
    for reference in ('src="http', "@import", "<script src", '<link rel="stylesheet"'):
        assert reference not in html


def test_a_second_run_computes_nothing(first_run: FusionResult, recipe_file: Path) -> None:
    second = fusechat(load_recipe(recipe_file))
    assert second.files.computed == 0
    assert second.model_version == first_run.model_version
    assert second.files.overall == first_run.files.overall


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"training": {"lm_weight": 0.8}}, {"train", "merge", "evaluate"}),
        ({"merge": {"method": "linear"}}, {"merge", "evaluate"}),
    ],
)
def test_a_change_computes_only_what_depends_on_it(
    first_run: FusionResult, recipe_file: Path, change: dict, computed: set[str]
) -> None:
    recipe = load_recipe(recipe_file)
    values = recipe.model_dump(exclude_unset=True)
    for section, settings in change.items():
        values[section] = {**values.get(section, {}), **settings}
    result = fusechat(type(recipe).model_validate(values))
    rows = result.files.summary.stages
    assert {row.stage for row in rows if row.status == "computed"} == computed
    # The control has lambda = 1 whatever the recipe's lambda is.
    assert next(row for row in rows if row.subject == "plain-sft" and row.stage == "train").status == "cached"


def test_a_plan_reads_the_dialogues_that_are_prepared(
    first_run: FusionResult, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "prepare_dialogues", lambda *_: pytest.fail("they are prepared"))
        there = plan.make_plan(recipe)
    assert {row.status for row in there.rows} == {"cached"}
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    anew = plan.make_plan(recipe)
    sizes = [[(row.stage, row.subject, row.tokens, row.flops) for row in made.rows] for made in (there, anew)]
    assert sizes[0] == sizes[1]
    assert {row.status for row in anew.rows} == {"compute"}


def test_summary_json_names_no_secret_and_no_traceback(first_run: FusionResult) -> None:
    summary = json.loads((first_run.files.folder / "summary.json").read_text(encoding="utf-8"))
    assert {model["role"] for model in summary["models"]} == {"pivot", "source", "target", "control", "fused"}


def test_a_changed_byte_in_the_store_is_found_and_computed_again(
    first_run: FusionResult, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = open_workplace()
    rows = {(row.stage, row.subject): row for row in first_run.files.summary.stages}
    broken = place.store.local_path(rows["extract", "bytes-400"].address) / "shard-00001.parquet"
    content = broken.read_bytes()
    broken.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    # A new fusion setting needs the distributions again.
    values = load_recipe(recipe_file).model_dump(exclude_unset=True) | {"fusion": {"level": "token"}}
    result = fusechat(type(load_recipe(recipe_file)).model_validate(values))
    assert "shard-00001.parquet" in capsys.readouterr().err
    assert broken.read_bytes() == content
    assert result.files.computed
