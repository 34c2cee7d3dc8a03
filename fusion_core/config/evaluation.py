"""What models are scored on."""

from __future__ import annotations

from pydantic import Field, model_validator

from fusion_core.config.benchmarks import ChatSanityConfig, ExactMatchConfig, LmEvalConfig, PassAt1Config
from fusion_core.config.judging import JudgedModels
from fusion_core.config.names import Count, Seed


class EvaluationConfig(JudgedModels):
    """What the models are scored on."""

    plain_sft_control: bool = Field(
        True, description="Also train the pivot with lambda = 1 on the same data, steps and seed, as the control."
    )
    batch_tokens: Count = Field(8192, description="Tokens in one scoring forward pass, padding included.")
    bootstrap_resamples: Count = Field(
        2000, le=1_000_000, description="Draws of dialogues behind the 95 % intervals of the score differences."
    )
    bootstrap_seed: Seed = Field(0, description="Seed of those draws.")
    exact_match: tuple[ExactMatchConfig, ...] = Field((), description="Arithmetic questions, such as GSM8K's.")
    pass_at_1: tuple[PassAt1Config, ...] = Field((), description="Small programming problems, MBPP's or HumanEval's.")
    chat_sanity: ChatSanityConfig | None = Field(None, description="Looks at how models answer; {} for its defaults.")
    lm_eval: LmEvalConfig | None = Field(None, description="Tasks of lm-eval, which is an extra.")

    @model_validator(mode="after")
    def _distinct_benchmarks(self) -> EvaluationConfig:
        for kind in ("exact_match", "pass_at_1"):
            names = [benchmark.name for benchmark in getattr(self, kind)]
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"two benchmarks of `{kind}` are called {doubled[0]!r}; rename one")
        return self
