from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fusion_core.config import AlignmentConfig, ExtractionConfig, FusionConfig, FusionFunctionConfig, TrainingConfig
from fusion_core.recipes import load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "deployments" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_form_that_sends_every_field_means_the_same_as_the_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    assert FusionConfig.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_field_given_its_default_counts_as_not_given() -> None:
    assert AlignmentConfig.model_validate({"positions": "dtw", "gold_consistent": True}).model_fields_set == {
        "positions"
    }
    assert ExtractionConfig.model_validate({"truncation": "top_k", "seed": 0}).model_fields_set == set()


def test_a_form_that_counts_batches_in_tokens_leaves_the_default_of_dialogues() -> None:
    form = TrainingConfig().model_dump(mode="json") | {"batch_tokens": 4096}
    assert TrainingConfig.model_validate(form).batch_dialogues is None
    with pytest.raises(ValidationError, match="exactly one"):
        TrainingConfig.model_validate(form | {"batch_dialogues": 7})


def test_a_field_that_was_changed_to_no_effect_is_an_error() -> None:
    with pytest.raises(ValidationError, match="matters only with"):
        ExtractionConfig.model_validate({"truncation": "top_k", "seed": 7})


@pytest.mark.parametrize(
    ("function", "setting"),
    [
        ("avgce", {"where_pivot_wins": "distribution"}),
        ("source", {"where_pivot_wins": "distribution"}),
        ("pivot", {"level": "token"}),
        ("pivot", {"cross_entropy_unit": "token"}),
        ("pivot", {"unaligned": "pivot"}),
    ],
)
def test_a_fusion_function_refuses_what_it_does_not_read(function: str, setting: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=f"`{next(iter(setting))}` does nothing with `function: {function}`"):
        FusionFunctionConfig.model_validate({"function": function, **setting})
    assert FusionFunctionConfig.model_validate({"function": "mince", **setting}).model_fields_set == set(setting)


def test_true_is_no_number_even_where_the_default_is_one() -> None:
    with pytest.raises(ValidationError, match="true is no value"):
        FusionConfig.model_validate(
            load_recipe(RECIPES[0]).model_dump(mode="json") | {"training": {"temperature": True}}
        )
