from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores
from fusion_core.evaluation.score_table import compare
from fusion_core.report.sweep_table import SweepRow, as_csv, as_markdown, over_seeds, summarize_sweep, sweep_rows
from fusion_core.sweeps import Sweep, expand, load_sweep, with_settings


@pytest.fixture
def recipe() -> FusionConfig:
    return FusionConfig.model_validate(
        {
            "name": "small",
            "pivot": {"name": "pivot", "path": "/pivot"},
            "sources": [{"name": "source", "path": "/source"}],
            "dialogues": {"files": [{"path": "/data.jsonl"}]},
            "training": {"epochs": 1},
        }
    )


def test_every_combination_runs_with_every_seed_and_keeps_what_it_does_not_vary(recipe: FusionConfig) -> None:
    sweep = Sweep(
        name="lambda",
        vary={"training.lm_weight": (0.1, 0.9), "fusion.function": ("mince", "avgce")},
        seeds=(0, 1, 2),
    )
    cells = expand(sweep, recipe)
    assert len(cells) == 12
    assert len({cell.label for cell in cells}) == 4
    assert {(cell.config.training.lm_weight, cell.config.fusion.function) for cell in cells} == {
        *((weight, function) for weight in (0.1, 0.9) for function in ("mince", "avgce")),
    }
    assert {cell.config.training.seed for cell in cells} == {0, 1, 2}
    assert {cell.config.training.epochs for cell in cells} == {1}
    assert {cell.config.registry.model_name for cell in cells} == {"small-lambda"}


def test_variants_change_several_settings_at_once(recipe: FusionConfig) -> None:
    variant = {"label": "paper", "set": {"alignment.positions": "dtw", "alignment.vocabulary": "statistics"}}
    (cell,) = expand(Sweep.model_validate({"name": "s", "variants": [variant]}), recipe)
    assert (cell.config.alignment.positions, cell.config.alignment.vocabulary) == ("dtw", "statistics")


def test_a_setting_that_is_not_there_or_a_wrong_value_is_named(recipe: FusionConfig) -> None:
    with pytest.raises(ConfigError, match="learning_rat"):
        with_settings(recipe, {"training.learning_rat": 1e-4})
    with pytest.raises(ConfigError, match="lm_weight"):
        with_settings(recipe, {"training.lm_weight": 2.0})
    with pytest.raises(ConfigError, match="no settings of its own"):
        with_settings(recipe, {"name.inner": 1})


@pytest.mark.parametrize(
    "text, fault",
    [
        ("name: s", "nothing to compare"),
        ("name: s\nvary: {training.lm_weight: []}", "at least one value"),
        ("name: s\nvary: {a: [1]}\nseeds: [1, 1]", "every seed once"),
        ("name: ../s\nvary: {a: [1]}", "letters, digits"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        load_sweep(path)


def test_too_many_fusions_are_refused(recipe: FusionConfig) -> None:
    sweep = Sweep(name="s", vary={"training.epochs": tuple(range(1, 40))}, seeds=tuple(range(40)))
    with pytest.raises(ConfigError, match="1,560 fusions"):
        expand(sweep, recipe)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.50, 0.52, 0.57]
    cell = over_seeds(values)
    # t(0.975, 2 degrees of freedom) = 4.302653.
    half = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.high == pytest.approx(np.mean(values) + half, abs=1e-6)
    assert over_seeds([0.5]).low is None


def test_the_mean_is_that_of_the_domains_and_not_of_all_bytes() -> None:
    # 1 nat for the one byte of d1, 18 for the nine of d2: means of domains 1.5, of bytes 1.9.
    one = DialogueScore(dialogue_id="x", domain="d1", response_bytes=(1,), ends=(1,), nats=(1.0,))
    other = DialogueScore(dialogue_id="y", domain="d2", response_bytes=(9,), ends=(9,), nats=(18.0,))
    fused = HeldOutScores(model_name="fused", max_length_tokens=64, dialogues=(one, other), refused={})
    scores = compare({"fused": fused}, "fused", resamples=10)
    found = {row.domain: row.nats_per_byte for row in sweep_rows("a", 0, scores)}
    assert found == {"mean": 1.5, "d1": 1.0, "d2": 2.0}


def test_tables_have_the_chosen_model_alone_and_the_best_in_bold() -> None:
    rows = [
        SweepRow(variant=variant, seed=seed, model=model, domain="mean", nats_per_byte=value + 0.01 * seed)
        for variant, value in (("a", 0.5), ("b", 0.4))
        for seed in (0, 1)
        for model in ("fused", "pivot")
    ]
    table = as_markdown(summarize_sweep(rows, "fused"))
    assert table.splitlines()[2].startswith("| a | 0.5050 ±")
    assert table.splitlines()[3].startswith("| b | **0.4050** ±")
    assert len(as_csv(rows).splitlines()) == 9
