"""How results are called in MLflow, and what a version must show to be promoted."""

from __future__ import annotations

from pydantic import Field, field_validator

from fusion_core.config.names import NAME_PATTERN
from fusion_core.config_section import Section


class RegistryConfig(Section):
    """How the fused model is called in MLflow."""

    model_name: str | None = Field(None, description="Registered model's name; default: the recipe's name.")
    experiment: str = Field("fuseline", min_length=1, description="MLflow experiment of the runs.")

    @field_validator("model_name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and not NAME_PATTERN.match(name):
            raise ValueError(
                "a registered model's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or "
                "digit"
            )
        return name
