"""A sweep: one recipe in many variants, each with several seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from fusion_core.config import NAME_PATTERN, FusionConfig
from fusion_core.config.names import Seed
from fusion_core.config_section import Section
from fusion_core.errors import ConfigError
from fusion_core.recipes import explain, read_mapping
from fusion_core.record import Record

LARGEST_NUMBER_OF_CELLS = 1000
LONGEST_NAME = 64


class Variant(Section):
    """One way to change the recipe."""

    label: str = Field(min_length=1, description="What tables and plots call it.")
    set: dict[str, Any] = Field(description="Settings by their dotted names, such as `training.lm_weight: 0.5`.")


class Sweep(Section):
    """Which settings of a recipe take which values."""

    name: str = Field(description="What the sweep's run and folder are called.")
    vary: dict[str, tuple[Any, ...]] = Field(
        default={}, description="Values of settings by their dotted names; every combination is one variant."
    )
    variants: tuple[Variant, ...] = Field((), description="Variants one by one, beside or instead of `vary`.")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0,), description="Values of `training.seed`; every variant runs once with each."
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError("a sweep's name has 1 to 64 letters, digits, '.', '_' or '-'")
        return name

    @model_validator(mode="after")
    def _something_to_do(self) -> Sweep:
        if not self.vary and not self.variants:
            raise ValueError("give `vary` or `variants`; without them there is nothing to compare")
        if any(not values for values in self.vary.values()):
            raise ValueError("every setting of `vary` needs at least one value")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("give every seed once")
        labels = [variant.label for variant in self.variants]
        if len(set(labels)) < len(labels):
            raise ValueError("give every variant a label of its own")
        return self


class Cell(Record):
    """One fusion of a sweep."""

    label: str
    seed: int
    config: FusionConfig


def load_sweep(path: Path) -> Sweep:
    """Read a sweep from YAML.

    Raises
    ------
    ConfigError
        If the file is missing, is no mapping, or a field is wrong.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Sweep {path} cannot be read ({error}); correct the path.") from error
    try:
        return Sweep.model_validate(read_mapping(text, path))
    except ValidationError as error:
        raise ConfigError(f"Sweep {path}: {explain(error)}") from error


def expand(sweep: Sweep, recipe: FusionConfig) -> list[Cell]:
    """Return every fusion of a sweep, variant by variant, seed by seed.

    Raises
    ------
    ConfigError
        If a setting does not exist, a value is wrong, or there are too many combinations.
    """
    combinations = math.prod(len(values) for values in sweep.vary.values()) if sweep.vary else 0
    # Counted before they are made: a few settings with many values each have more than fit any memory.
    cells = (combinations + len(sweep.variants)) * len(sweep.seeds)
    if cells > LARGEST_NUMBER_OF_CELLS:
        found = f"{cells:,}" if cells < 10**12 else "more than 10^12"
        raise ConfigError(
            f"Sweep {sweep.name} has {found} fusions; at most {LARGEST_NUMBER_OF_CELLS:,} are run at once."
        )
    grid = [dict(zip(sweep.vary, values, strict=True)) for values in itertools.product(*sweep.vary.values())]
    variants = [(_label(settings), settings) for settings in grid] if sweep.vary else []
    variants += [(variant.label, variant.set) for variant in sweep.variants]
    # Of another name, so that a sweep never becomes a candidate of the model that is in use.
    model_name = f"{recipe.name}-{sweep.name}"[:LONGEST_NAME]
    common = {"registry.model_name": model_name}
    return [
        Cell(label=label, seed=seed, config=with_settings(recipe, {**common, **settings, "training.seed": seed}))
        for label, settings in variants
        for seed in sweep.seeds
    ]


def with_settings(recipe: FusionConfig, settings: Mapping[str, Any]) -> FusionConfig:
    """Return a recipe with some settings changed, checked like any recipe.

    Raises
    ------
    ConfigError
        If a setting does not exist, or a value is wrong.
    """
    document = recipe.model_dump(mode="json", exclude_unset=True)
    for name, value in settings.items():
        *sections, field = name.split(".")
        place = document
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"The setting {name!r} does not exist; {section!r} has no settings of its own.")
            place = inner
        place[field] = value
    try:
        return FusionConfig.model_validate(document)
    except ValidationError as error:
        changed = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise ConfigError(f"The variant {changed}: {explain(error)}") from error


def _label(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())
