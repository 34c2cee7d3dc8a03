"""The page of settings says what the code says."""

from __future__ import annotations

from deployments.settings_page import PAGE, _cell, settings_page
from fusion_core.config import FusionConfig, TrainingConfig
from tasks.settings import Settings


def test_the_committed_page_is_what_the_code_gives() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `python -m deployments.settings_page`"


def test_every_setting_of_every_level_has_a_row_with_its_meaning() -> None:
    page = settings_page()
    for name in (*FusionConfig.model_fields, *TrainingConfig.model_fields):
        assert f"| `{name}` |" in page
    for place in ("dialogues.files[]", "training.lora", "evaluation.exact_match[]", "promotion.must_beat[]"):
        assert f"### `{place}`" in page, place
    assert page.count("| `FUSELINE_") == sum(
        name.split("_")[0] not in ("mlflow", "prefect") for name in Settings.model_fields
    )
    assert "| `lm_weight` | number (≥ 0, ≤ 1) | `0.5` |" in page


def test_an_angle_bracket_is_shown_as_one_in_code_and_beside_it() -> None:
    assert _cell("a <b> `c=<d>|` <e>") == "a &lt;b> `c=<d>\\|` &lt;e>"
    assert "`fuseline.recipe=<name>`" in settings_page()
