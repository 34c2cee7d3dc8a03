"""The recipes of the repository: each is valid, and the paper's run is the paper's, but for what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fusion_core.recipes import load_recipe, parse_recipe, recipe_yaml

RECIPES = sorted((Path(__file__).resolve().parents[2] / "deployments" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_survives_being_written_out(path: Path) -> None:
    recipe = load_recipe(path)
    assert parse_recipe(recipe_yaml(recipe), path) == recipe
    whole = recipe_yaml(recipe, with_defaults=True)
    assert parse_recipe(whole, path) == recipe and "where_pivot_wins" in whole and "lm_weight" in whole
    missing = [file.path for file in recipe.dialogues.files if file.path is not None and not file.path.is_file()]
    assert missing == []


@pytest.mark.parametrize("name", ["fusechat-7b", "fusechat-7b-v2"])
def test_what_the_comment_says_of_the_papers_own_way_is_accepted(name: str) -> None:
    path = next(path for path in RECIPES if path.stem == name)
    yaml = YAML(typ="safe")
    written = yaml.load(path)
    for section, settings in yaml.load("\n".join(re.findall(r"^#   (.+)$", path.read_text(), re.MULTILINE))).items():
        written[section] = {**written.get(section, {}), **settings}
    recipe = parse_recipe(json.dumps(written), path)
    assert (recipe.alignment.positions, recipe.alignment.vocabulary) == ("dtw", "statistics")
    assert (recipe.fusion.cross_entropy_unit, recipe.extraction.template) == ("token", "pivot")
    assert recipe.fusion.where_pivot_wins == "distribution" and recipe.training.lm_weight == 0.9


def test_the_papers_run() -> None:
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "fusechat-7b"))
    assert [model.hub for model in (recipe.pivot, *recipe.sources)] == [
        "openchat/openchat_3.5",
        "NousResearch/Nous-Hermes-2-Mixtral-8x7B-DPO",
        "NousResearch/Nous-Hermes-2-SOLAR-10.7B",
    ]
    assert recipe.dialogues.max_length_tokens == 2048
    assert recipe.extraction.top_k == 10
    assert (recipe.fusion.function, recipe.fusion.level) == ("mince", "dialogue")
    training = recipe.training
    assert (training.lm_weight, training.epochs, training.batch_dialogues) == (0.9, 3, 128)
    assert (training.learning_rate, training.warmup_share, training.precision) == (5e-6, 0.03, "bfloat16")
    assert (recipe.merge.method, recipe.merge.granularity) == ("varm", "matrix")
