"""Addresses of everything a fusion makes: digests of all that decides the bytes, known before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusion_core.config import ExtractionConfig, FusionConfig, TrainingConfig
from fusion_core.devices import compute_dtype, default_device
from fusion_core.dialogues import ResolvedFile
from fusion_core.models.identity import ResolvedModel
from fusion_core.training.loop import SPEED_SETTINGS

# Raise a stage's number when its code changes the bytes it makes: its address then changes, nothing stale is reused.
ALGORITHM_VERSIONS = {"extraction": 3, "fusion": 4, "training": 1, "merge": 3, "scores": 2}
# Of single merge methods, where theirs alone changed; the others' merges need not be computed again.
MERGE_VERSIONS = {"sce": 4}

# Settings that change speed or memory but not what is computed stay out of the addresses.
EXTRACTION_SPEED_SETTINGS = {"batch_tokens", "placement", "processes"}
ADDRESS_DIGITS = 32

# How tables call the fused model and the plain fine-tuning control.
FUSED = "fused"
CONTROL = "plain-sft"


def digest_of(*parts: Any) -> str:
    """Return a short SHA-256 over the canonical JSON of the parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:ADDRESS_DIGITS]


@dataclass(frozen=True)
class ResolvedFusion:
    """A recipe with its models and data pinned.

    Parameters
    ----------
    config : FusionConfig
    pivot : ResolvedModel
    sources : tuple of ResolvedModel
        In the recipe's order.
    files : tuple of ResolvedFile
        The data files, in the recipe's order.
    dataset_digest : str
        Digest of the data files' content and the preparation's settings.
    pivot_template : str
        The pivot's chat template, which all models read with ``template: pivot``.
    """

    config: FusionConfig
    pivot: ResolvedModel
    sources: tuple[ResolvedModel, ...]
    files: tuple[ResolvedFile, ...]
    dataset_digest: str
    pivot_template: str

    @property
    def groups(self) -> tuple[tuple[ResolvedModel, ...], ...]:
        """Sources that share a target: one each for pairwise fusion, all of them for joint fusion."""
        return (self.sources,) if self.config.strategy == "joint" else tuple((source,) for source in self.sources)

    def target_name(self, sources: tuple[ResolvedModel, ...]) -> str:
        """How tables call the target of some sources; a joint target is the fused model itself."""
        return FUSED if self.config.strategy == "joint" else f"target-{sources[0].name}"

    def group_name(self, sources: tuple[ResolvedModel, ...]) -> str:
        """How tables call some sources whose distributions are fused together."""
        return "joint" if self.config.strategy == "joint" else sources[0].name

    def dialogues(self, split: str) -> str:
        """Address of the prepared dialogues of ``train`` or ``held_out``."""
        return f"datasets/{self.dataset_digest[:ADDRESS_DIGITS]}/{split}"

    def distributions(self, model: ResolvedModel) -> str:
        """Address of one model's distributions over the training dialogues."""
        extraction = self.config.extraction
        spec = digest_of(
            ALGORITHM_VERSIONS["extraction"],
            _without(extraction, EXTRACTION_SPEED_SETTINGS | {"template"}),
            self.config.dialogues.max_length_tokens,
            model.dtype,
            model.quantization,
            self.template_of(model),
        )
        return f"distributions/{model.digest[:ADDRESS_DIGITS]}/{self.dataset_digest[:ADDRESS_DIGITS]}/{spec}"

    def template_of(self, model: ResolvedModel) -> str | None:
        """The template a model reads when it is not its own."""
        foreign = self.config.extraction.template == "pivot" and model.digest != self.pivot.digest
        return self.pivot_template if foreign else None

    def fused(self, sources: tuple[ResolvedModel, ...]) -> str:
        """Address of the pivot's distributions fused with those of some sources."""
        pivot = digest_of(self.distributions(self.pivot))
        others = digest_of([self.distributions(source) for source in sources])
        spec = digest_of(
            ALGORITHM_VERSIONS["fusion"],
            self.config.alignment.settings_in_effect,
            self.config.fusion.model_dump(mode="json"),
        )
        return f"fused/{pivot}/{others}/{spec}"

    def target(self, sources: tuple[ResolvedModel, ...], *, lm_weight: float | None = None) -> str:
        """Address of the target trained on some sources; ``lm_weight=1.0`` is the plain-SFT control."""
        training = self.config.training
        if lm_weight is not None:
            training = training.model_copy(update={"lm_weight": lm_weight})
        return f"targets/{self._training_data(sources, training)}/{self._training_spec(training)}"

    def merged(self) -> str:
        """Address of the fused model."""
        if self.config.strategy == "joint":
            return self.target(self.sources)
        return self.merge_of([self.target((source,)) for source in self.sources])

    def merge_of(self, targets: Sequence[str]) -> str:
        """Address of the recipe's merge of any checkpoints of the pivot's structure, given by their addresses."""
        merge = self.config.merge
        version = MERGE_VERSIONS.get(merge.method, ALGORITHM_VERSIONS["merge"])
        spec = digest_of(version, merge.model_dump(mode="json"))
        return f"merged/{digest_of(list(targets), self.pivot.digest)}/{spec}"

    def scores(self, model: ResolvedModel | str) -> str:
        """Address of the held-out scores of one of the recipe's models, or of a checkpoint given by its address."""
        if isinstance(model, ResolvedModel):
            identity = digest_of(model.digest, model.dtype, model.quantization, self.template_of(model))
        else:
            identity = digest_of(model, self.pivot.dtype)
        spec = digest_of(ALGORITHM_VERSIONS["scores"], self.config.dialogues.max_length_tokens)
        return f"scores/{identity}/{self.dataset_digest[:ADDRESS_DIGITS]}/{spec}"

    def _training_data(self, sources: tuple[ResolvedModel, ...], training: TrainingConfig) -> str:
        # With lambda = 1 the fused distributions carry no weight: the control depends on dialogues and pivot alone,
        # so that changing a source or the alignment does not train it again.
        if training.lm_weight == 1.0:
            return digest_of("dialogues", self.dataset_digest, self.config.dialogues.max_length_tokens)
        return digest_of(self.fused(sources))

    def _training_spec(self, training: TrainingConfig) -> str:
        speed = set(SPEED_SETTINGS)
        if training.lora is not None and training.lora.dropout:
            # What is dropped is drawn for each micro-batch of each process.
            speed -= {"micro_batch_tokens", "packing", "processes"}
        settings = _without(training, speed)
        settings["precision"] = str(compute_dtype(training.precision, default_device()))
        return digest_of(ALGORITHM_VERSIONS["training"], settings, self.pivot.digest)


def _without(section: ExtractionConfig | TrainingConfig, names: set[str]) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=names)
