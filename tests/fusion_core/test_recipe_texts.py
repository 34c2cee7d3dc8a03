"""Texts that are no recipe are refused in a sentence, whatever YAML's reader makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.errors import ConfigError
from fusion_core.models.card import read_license
from fusion_core.recipes import parse_recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("? - :\n", "a list or a mapping stands where a setting's name is expected"),
        ("? {a: b}\n: c\n", "found unhashable key"),
        ("day: 2020-13-45\n", "cannot be read as YAML"),
        ("[" * 3000, "cannot be read as YAML"),
        ("name: [", "line 1 is not valid YAML"),
        ("- name\n", "expected a mapping of settings"),
        ("", "found nothing"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_recipe(text, Path("recipe.yaml"))


@pytest.mark.parametrize("front", ["license: apache-2.0\nday: 2020-13-45", "? - :", "[" * 3000])
def test_a_foreign_front_matter_that_cannot_be_read_states_no_licence(front: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\ntext\n", encoding="utf-8")
    assert read_license(tmp_path) is None
