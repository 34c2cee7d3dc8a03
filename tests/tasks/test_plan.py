"""A plan of what is on the hub: from what the recipe says of it, without fetching anything."""

from __future__ import annotations

import pytest

from fusion_core.config import FusionConfig
from fusion_core.planning import ModelSize
from tasks import plan


@pytest.fixture(autouse=True)
def hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("fusion_core.planning.sizes._fetch_config", refuse)


def recipe(**changes: object) -> FusionConfig:
    return FusionConfig.model_validate(
        {
            "name": "far",
            "pivot": {"name": "pivot", "hub": "maker/pivot", "parameters": 1_000_000},
            "sources": [
                {"name": "experts", "hub": "maker/experts", "parameters": 8_000_000, "active_parameters": 2_000_000}
            ],
            "dialogues": {
                "files": [{"hub": "maker/data", "expected_dialogues": 1000, **changes}],
                "max_length_tokens": 100,
                "held_out_share": 0.1,
            },
        }
    )


def test_costs_are_bounded_by_what_the_recipe_says() -> None:
    made = plan.make_plan(recipe())
    rows = {(row.stage, row.subject): row for row in made.rows}
    assert {row.status for row in made.rows} == {"unknown"}
    # 900 training dialogues of 100 tokens; 2 FLOPs per active parameter and token.
    assert rows["extract", "pivot"].tokens == 90_000
    assert rows["extract", "pivot"].flops == pytest.approx(2 * 1_000_000 * 90_000, rel=0.01)
    assert rows["extract", "experts"].flops == pytest.approx(2 * 2_000_000 * 90_000, rel=0.01)
    assert any("upper bounds" in line for line in made.unknown)


def test_without_the_recipes_word_the_gap_is_named() -> None:
    made = plan.make_plan(recipe(expected_dialogues=None))
    assert all(row.flops is None for row in made.rows)
    assert any("expected_dialogues" in line for line in made.unknown)


def test_a_size_given_for_what_is_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to `hub`"):
        FusionConfig.model_validate(
            {**recipe().model_dump(exclude_unset=True), "pivot": {"name": "p", "path": "p", "parameters": 5}}
        )


def test_sizes_as_told_have_no_layers() -> None:
    size, gap = plan.read_model_size(recipe().sources[0])
    assert size == ModelSize(name="experts", parameters=8_000_000, active_parameters=2_000_000)
    assert "recipe's" in (gap or "")
