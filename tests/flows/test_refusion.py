"""Re-fusion on real small models: what a new source costs, and what becomes of one that is bad, double or late."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prefect.states import State
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tasks.stages.train
from experiments.lab import Entry, Lab
from flows.refusion import refusion
from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.recipes import load_recipe
from tasks.landing.quarantine import REASON_TAG, STATE_TAG, release_source
from tasks.landing.refusion_result import RefusionResult
from tasks.landing.sources import RECIPE_TAG, SOURCE_TAG
from tasks.landing.survey import Survey, survey_sources, with_sources
from tasks.resolve import resolve_fusion
from tasks.runs.tracking import Tracking
from tasks.store.workplace import Workplace, open_workplace
from tests.flows.conftest import make_lab_source, write_dialogues


@pytest.fixture(scope="module")
def home(place: Path, prefect_server: None) -> Iterator[Path]:
    """The place of all flows' tests: what is fused first is the small recipe, and may be there already."""
    with pytest.MonkeyPatch.context() as patch:
        # Sampling the machine is another test's subject, and takes a second a stage.
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        yield place


@pytest.fixture(scope="module")
def recipe(home: Path, recipe_file: Path) -> Path:
    """The small recipe without the control, so that every training that is counted is a target's."""
    path = recipe_file.with_name("growing.yaml")
    text = recipe_file.read_text(encoding="utf-8").replace("name: small", "name: growing")
    path.write_text(f"{text}evaluation: {{plain_sft_control: false, bootstrap_resamples: 50}}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def new_sources(recipe: Path) -> dict[str, Path]:
    """Checkpoints that are in no recipe: good ones, one with NaN, one that knows nothing, one that is no checkpoint."""
    folder = recipe.parent / "landing"
    texts = write_dialogues(recipe.parent)
    for size in (300, 500):
        make_lab_source(folder / f"good-{size}", texts, size)
    for name, spoil in {"nan": lambda weight: weight * float("nan"), "noise": torch.randn_like}.items():
        shutil.copytree(folder / "good-500", folder / name)
        weights = load_file(folder / name / "model.safetensors")
        torch.manual_seed(0)
        save_file({key: spoil(value) for key, value in weights.items()}, folder / name / "model.safetensors")
    (folder / "empty").mkdir()
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def first(recipe: Path) -> RefusionResult:
    return run(recipe)[1]


def run(recipe: Path, **arguments: object) -> tuple[State, RefusionResult]:
    state = refusion(str(recipe), return_state=True, **arguments)
    return state, state.result()


def place_of(recipe: Path) -> tuple[Workplace, FusionConfig, Survey]:
    config = load_recipe(recipe)
    return open_workplace(), config, survey_sources(config)


def register(folder: Path, recipe: str = "growing", name: str | None = None) -> str:
    """Register a folder in MLflow as somebody would who has a new source."""
    client = Tracking(open_workplace().settings, "fuseline").client
    name = name or folder.name
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {SOURCE_TAG: "true", RECIPE_TAG: recipe}
    return str(client.create_model_version(name, folder.as_uri(), tags=tags).version)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count forward passes by the folder's name of the model that makes them, and targets that are trained."""
    counts: Counter[str] = Counter()
    load = AutoModelForCausalLM.from_pretrained.__func__
    train = tasks.stages.train.train_target

    def counting_load(cls: type, folder: object, *arguments: object, **options: object) -> object:
        loaded = load(cls, folder, *arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.register_forward_pre_hook(lambda *_: counts.update([Path(str(folder)).name]))
        return loaded

    def counting_train(*arguments: object, **options: object) -> object:
        counts["targets"] += 1
        return train(*arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(counting_load))
    monkeypatch.setattr(tasks.stages.train, "train_target", counting_train)
    return counts


def test_the_first_run_fuses_the_recipe_as_it_is(first: RefusionResult) -> None:
    assert [(item.name, item.state) for item in first.sources] == [("bytes-400", "fused"), ("bytes-700", "fused")]
    assert first.fusion.model_version == "1"


def test_nothing_new_is_said_and_nothing_computed(first: RefusionResult, recipe: Path, work: Counter[str]) -> None:
    state, result = run(recipe)
    assert (state.name, state.is_completed()) == ("NothingNew", True)
    assert "2 fused" in state.message
    assert result.fusion is None
    assert not work


def test_a_registered_source_costs_its_own_share_alone(
    first: RefusionResult, recipe: Path, new_sources: dict[str, Path], work: Counter[str]
) -> None:
    register(new_sources["good-300"])
    state, result = run(recipe)
    assert state.name == "Fused"
    assert result.fusion.model_version == "2"
    computed = {(row.stage, row.subject) for row in result.fusion.files.summary.stages if row.status == "computed"}
    name = "good-300-v1"
    assert computed == {
        ("extract", name),
        ("fuse", name),
        ("train", f"target-{name}"),
        ("merge", "varm"),
        ("evaluate", f"target-{name}"),
        ("evaluate", "fused"),
    }
    assert work["good-300"] > 0
    assert work["targets"] == 1
    assert work["bytes-400"] == work["bytes-700"] == 0
    _, _, found = place_of(recipe)
    assert found.find(name).state == "fused"


def test_the_same_content_again_is_not_fused_again(
    first: RefusionResult, recipe: Path, new_sources: dict[str, Path], work: Counter[str]
) -> None:
    register(new_sources["good-300"])
    _, result = run(recipe)
    assert [item.state for item in result.sources] == ["duplicate"]
    assert result.fusion is None
    assert not work
    assert run(recipe)[0].name == "NothingNew"


def test_bad_sources_are_quarantined_and_the_next_good_one_is_fused(
    first: RefusionResult, recipe: Path, new_sources: dict[str, Path], work: Counter[str]
) -> None:
    for name in ("nan", "empty", "good-500"):
        register(new_sources[name])
    state, result = run(recipe)
    assert state.name == "Fused"
    reasons = {item.name: item.reason for item in result.in_state("quarantined")}
    assert set(reasons) == {"nan-v1", "empty-v1"}
    assert "nan-v1" in reasons["nan-v1"]
    assert "config.json" in reasons["empty-v1"]
    assert [item.name for item in result.in_state("fused")] == ["good-500-v1"]
    assert work["targets"] == 1
    workplace, config, found = place_of(recipe)
    client = workplace.tracking(config.registry.experiment).client
    tags = client.get_model_version("nan", "1").tags
    assert tags[STATE_TAG] == "quarantined"
    assert tags[REASON_TAG] == reasons["nan-v1"]

    # What is released is tried again, and nothing else is.
    release_source(workplace, config, found.find("nan-v1").source)
    again = run(recipe)
    assert again[0].name == "Quarantined"
    assert [item.name for item in again[1].sources] == ["nan-v1"]


def test_a_source_from_the_form_lands_for_good(
    first: RefusionResult, recipe: Path, new_sources: dict[str, Path], work: Counter[str]
) -> None:
    # It knows nothing, so it is stopped at the door: nothing is extracted from it.
    form = ModelConfig(name="noise", path=new_sources["noise"])
    state, result = run(recipe, source=form)
    assert state.name == "Quarantined"
    assert "largest_gap" in result.sources[0].reason
    assert work["targets"] == 0
    assert place_of(recipe)[2].find("noise").source.origin == "store"
    assert run(recipe, source=form)[0].name == "NothingNew"


def test_sources_taken_in_one_by_one_end_in_the_very_bytes_of_all_at_once(
    first: RefusionResult,
    recipe: Path,
    new_sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(new_sources["good-300"])
    run(recipe)
    workplace, config, found = place_of(recipe)
    sources = [item.source for item in found.in_state("fused")]
    assert len(sources) > len(config.sources)
    everything = with_sources(config, sources)
    one_by_one = workplace.folder(resolve_fusion(everything).merged())
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    lab = Lab(everything, None)
    # The lab follows the paper unless it is told otherwise.
    product = Entry("fused", "fused", {"fusion.where_pivot_wins": "label"})
    at_once = lab.workplace.folder(lab.checkpoint(product, config.training.seed).make().address)
    assert at_once.is_relative_to(tmp_path)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one_by_one, at_once)]
    assert weights[0] == weights[1]


def test_what_was_accepted_is_fused_again_where_mlflow_has_lost_it(
    first: RefusionResult, recipe: Path, new_sources: dict[str, Path], work: Counter[str]
) -> None:
    register(new_sources["good-300"])
    run(recipe)
    workplace, config, before = place_of(recipe)
    accepted = [item.source.name for item in before.in_state("fused")]
    assert len(accepted) > len(config.sources)
    work.clear()
    workplace.tracking(config.registry.experiment).client.delete_registered_model(first.fusion.model_name)
    state, result = run(recipe)
    assert (state.name, result.fusion.model_version) == ("Fused", "1")
    assert [item.name for item in result.in_state("fused")] == accepted
    assert not work
    assert run(recipe)[0].name == "NothingNew"
