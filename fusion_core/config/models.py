"""Where a model comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from fusion_core.config.names import NAME_PATTERN
from fusion_core.config_section import Section

LARGEST_NUMBER_OF_PARAMETERS = 10**15


class ModelConfig(Section):
    """A chat LLM: a local checkpoint folder or a hub repository."""

    name: str = Field(description="How runs, tables and reports call the model; letters, digits, '.', '_', '-'.")
    path: Path | None = Field(None, description="Local checkpoint folder with safetensors; instead of `hub`.")
    hub: str | None = Field(None, description="Hub repository such as 'openchat/openchat_3.5'; instead of `path`.")
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of `hub`; pinned to a commit when a run starts. Default: the main branch.",
    )
    chat_template: Path | None = Field(
        None, description="Jinja file that replaces the tokenizer's chat template; needed where the tokenizer has none."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights when the model is only read; auto: bf16 where it is fast."
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        "none",
        description="Load the weights of a source rounded to 8 or 4 bits, where it fits no GPU otherwise; its "
        "distributions change a little. Needs the extra bitsandbytes and a GPU.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that the model's repository carries. Only for makers you trust."
    )
    parameters: PositiveInt | None = Field(
        None,
        le=LARGEST_NUMBER_OF_PARAMETERS,
        description="Number of parameters of a `hub` model; `plan` uses it where the hub cannot be reached.",
    )
    active_parameters: PositiveInt | None = Field(
        None,
        le=LARGEST_NUMBER_OF_PARAMETERS,
        description="Parameters a token passes through in a mixture of experts; goes with `parameters`.",
    )
    note: str = Field("", description="One line on what this model is; shown in tables and on the model card.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError(
                "a model's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _one_place(self) -> ModelConfig:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a local folder) and `hub` (a hub repository)")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` belongs to `hub`; a local `path` has none, so remove it")
        if self.parameters is not None and self.hub is None:
            raise ValueError("`parameters` belongs to `hub`; those of a local `path` are counted, so remove it")
        if self.active_parameters is not None and self.parameters is None:
            raise ValueError("`active_parameters` needs `parameters`")
        return self
