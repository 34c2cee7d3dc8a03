"""How a recipe takes in sources that land after it was written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fusion_core.config.names import NAME_PATTERN
from fusion_core.config_section import Section


class RefusionConfig(Section):
    """Where new sources are looked for, what they must show, and whether a better model is promoted by itself."""

    look_in: tuple[Literal["registry", "store"], ...] = Field(
        ("registry", "store"),
        description="registry: versions in MLflow tagged `fuseline.source=true` and `fuseline.recipe=<name>`. store: "
        "what lies below `sources/<store_folder>/` in the object store. Empty: the recipe's own sources only.",
    )
    store_folder: str | None = Field(
        None, description="Folder below `sources/` in the store; several recipes may share one. Default: the name."
    )
    largest_gap: Annotated[float, Field(ge=0.0)] | None = Field(
        1.0,
        description="Nats per byte by which a new source may be worse than the pivot on the held-out dialogues; beyond "
        "it, the source is quarantined before anything is extracted. null: any source is taken.",
    )
    gates: Literal["dry", "real"] = Field(
        "dry",
        description="dry: a new candidate's gates are shown, a person promotes. real: a candidate that passes becomes "
        "the champion, by hand where the promotion asks for approval.",
    )

    @field_validator("look_in")
    @classmethod
    def _once_each(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(places)) < len(places):
            raise ValueError("name each place once")
        return places

    @field_validator("store_folder")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and not NAME_PATTERN.match(name):
            raise ValueError("a folder's name has 1 to 64 letters, digits, '.', '_' or '-', no '/'")
        return name
