"""Recipes picked by name, so that a form in Prefect's pages can offer them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError
from fusion_core.recipes import load_recipe
from tasks.settings import Settings

SUFFIX = ".yaml"


def recipe_names() -> list[str]:
    """Return the names that can be picked: the YAML files of the folder FUSELINE_RECIPES."""
    return sorted(path.stem for path in Settings().recipes.glob(f"*{SUFFIX}"))


def find_recipe(recipe: str) -> Path:
    """Return the file of a recipe that is picked by name, or named by its path.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    named = Settings().recipes / f"{recipe}{SUFFIX}"
    path = named if "/" not in recipe and named.is_file() else Path(recipe).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"There is no recipe {recipe!r}: {named.parent} (FUSELINE_RECIPES) has "
            f"{', '.join(recipe_names()) or 'none'}; pick one of them, or give "
            "the path of a file on the machine where the flow runs."
        )
    return path


def load_named_recipe(recipe: str) -> FusionConfig:
    """Read a recipe that is picked by name, or named by its path."""
    return load_recipe(find_recipe(recipe))


def _known(recipe: str) -> str:
    find_recipe(recipe)
    return recipe


# The names are listed when a deployment is made; `prefect deploy --all` again lists new ones.
RecipeName = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema(
        {
            "description": "A recipe of the folder FUSELINE_RECIPES, or the path of a recipe on the worker's machine.",
            "anyOf": [
                {"title": "name", "type": "string", "enum": recipe_names()},
                {"title": "file", "type": "string"},
            ],
        }
    ),
]
