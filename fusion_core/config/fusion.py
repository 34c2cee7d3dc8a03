"""A whole recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fusion_core.config.alignment import AlignmentConfig, FusionFunctionConfig
from fusion_core.config.dialogues import DialoguesConfig
from fusion_core.config.evaluation import EvaluationConfig
from fusion_core.config.extraction import ExtractionConfig
from fusion_core.config.models import ModelConfig
from fusion_core.config.names import NAME_PATTERN
from fusion_core.config.promotion import PromotionConfig
from fusion_core.config.refusion import RefusionConfig
from fusion_core.config.registry import RegistryConfig
from fusion_core.config.training import TrainingConfig
from fusion_core.config_section import Section
from fusion_core.merge_spec import MergeSpec


class FusionConfig(Section):
    """A whole fusion."""

    name: str = Field(description="Name of the recipe; runs and the registered model are called by it.")
    pivot: ModelConfig = Field(description="The model whose architecture and tokenizer the result has.")
    sources: tuple[ModelConfig, ...] = Field(min_length=1, description="The models whose knowledge is wanted.")
    strategy: Literal["pairwise", "joint"] = Field(
        "pairwise",
        description="pairwise: one target per source, then merge (FuseChat). joint: one target on all (FuseLLM).",
    )
    dialogues: DialoguesConfig
    extraction: ExtractionConfig = ExtractionConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    fusion: FusionFunctionConfig = FusionFunctionConfig()
    training: TrainingConfig = TrainingConfig()
    merge: MergeSpec = MergeSpec()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig = RegistryConfig()
    refusion: RefusionConfig = RefusionConfig()
    promotion: PromotionConfig = PromotionConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError(
                "a recipe's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _distinct_models(self) -> FusionConfig:
        if self.extraction.truncation == "sampled" and self.alignment.duplicates == "first":
            raise ValueError(
                "`alignment.duplicates: first` normalises rows again, and sampled weights are then biased; set "
                "`duplicates: sum` or `extraction.truncation: top_k`"
            )
        if self.pivot.quantization != "none":
            raise ValueError("a pivot is trained, so it is read as it is; remove its `quantization`")
        quantised = next((source.name for source in self.sources if source.quantization != "none"), None)
        if quantised and self.extraction.backend == "vllm":
            raise ValueError(
                f"`extraction.backend: vllm` does not read source {quantised!r} quantised; remove its `quantization`, "
                "or the backend"
            )
        names = [self.pivot.name, *(source.name for source in self.sources)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"two models are called {doubled[0]!r}; give every source, and the pivot, a name of its own"
            )
        places = {(str(self.pivot.path), self.pivot.hub, self.pivot.revision): "the pivot"}
        for source in self.sources:
            place = (str(source.path), source.hub, source.revision)
            if place in places:
                raise ValueError(f"source {source.name!r} is the same model as {places[place]}; remove it")
            places[place] = f"source {source.name!r}"
        if self.strategy == "joint" and "merge" in self.model_fields_set:
            raise ValueError("`strategy: joint` trains one target and merges nothing; remove the `merge` section")
        return self

    @model_validator(mode="after")
    def _rivals_are_trained(self) -> FusionConfig:
        rivals = {gate.rival for gate in self.promotion.must_beat}
        rivals |= {gate.rival for gate in self.promotion.must_not_drop_more_than}
        if not self.evaluation.plain_sft_control and "plain_sft" in rivals:
            raise ValueError(
                "a gate of `promotion` compares with plain_sft, which is not trained; set "
                "`evaluation.plain_sft_control: true` or name another `rival`"
            )
        return self
