"""A recipe: one pydantic model per stage, every field described, unknown fields refused."""

from fusion_core.config.alignment import AlignmentConfig, FusionFunctionConfig
from fusion_core.config.dialogues import DialogueFile, DialoguesConfig
from fusion_core.config.evaluation import EvaluationConfig
from fusion_core.config.extraction import ExtractionConfig
from fusion_core.config.fusion import FusionConfig
from fusion_core.config.models import ModelConfig
from fusion_core.config.names import NAME_PATTERN
from fusion_core.config.promotion import MustBeat, MustNotDrop, PromotionConfig
from fusion_core.config.refusion import RefusionConfig
from fusion_core.config.registry import RegistryConfig
from fusion_core.config.training import LoraConfig, TrainingConfig

__all__ = [
    "NAME_PATTERN",
    "AlignmentConfig",
    "DialogueFile",
    "DialoguesConfig",
    "EvaluationConfig",
    "ExtractionConfig",
    "FusionConfig",
    "FusionFunctionConfig",
    "LoraConfig",
    "ModelConfig",
    "MustBeat",
    "MustNotDrop",
    "PromotionConfig",
    "RefusionConfig",
    "RegistryConfig",
    "TrainingConfig",
]
