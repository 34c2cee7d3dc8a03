"""What models are scored on."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from fusion_core.config.names import Seed
from fusion_core.config_section import Section


class EvaluationConfig(Section):
    """What the models are scored on."""

    plain_sft_control: bool = Field(
        True, description="Also train the pivot with lambda = 1 on the same data, steps and seed, as the control."
    )
    batch_tokens: PositiveInt = Field(8192, description="Tokens in one scoring forward pass, padding included.")
    bootstrap_resamples: PositiveInt = Field(
        2000, description="Draws of dialogues behind the 95 % intervals of the score differences."
    )
    bootstrap_seed: Seed = Field(0, description="Seed of those draws.")
