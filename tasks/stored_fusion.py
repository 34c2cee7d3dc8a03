"""A recipe's stages one by one, each on what the one before it published; no Prefect and no MLflow run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError, StoreError
from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.evaluation.score_table import ScoreTable, compare
from fusion_core.models.identity import ResolvedModel
from fusion_core.recipes import load_recipe
from tasks.addresses import CONTROL, FUSED, ResolvedFusion
from tasks.resolve import resolve_fusion
from tasks.stages.benchmarks import find_benchmarks, score_benchmarks
from tasks.stages.evaluate import read_scores, score_model
from tasks.stages.extract import extract_distributions
from tasks.stages.fuse import fuse_distributions
from tasks.stages.judged import find_judged, judge_model, judged_tables
from tasks.stages.merge import merge_targets
from tasks.stages.prepare import PreparedDialogues, prepare_dataset
from tasks.stages.summarize import RunFiles, write_summary
from tasks.stages.train import train_on_fused
from tasks.store.publication import Artifact, find_artifact
from tasks.store.workplace import Workplace, open_workplace


@dataclass(frozen=True)
class StoredFusion:
    """A resolved recipe and the store its stages publish to."""

    fusion: ResolvedFusion
    workplace: Workplace

    @classmethod
    def open(cls, recipe: Path) -> StoredFusion:
        """Read and resolve a recipe, and open the store."""
        return cls(resolve_fusion(load_recipe(recipe)), open_workplace())

    def prepare(self) -> PreparedDialogues:
        """Prepare the dialogues."""
        return prepare_dataset(self.fusion)

    def extract(self, names: Sequence[str] | None = None) -> list[Artifact]:
        """Extract the distributions of all models, or of those named."""
        chosen = self._models(names)
        dialogues = self._dialogues("train")
        return [extract_distributions(self.fusion, model, dialogues) for model in chosen]

    def fuse(self) -> list[Artifact]:
        """Fuse each group of sources with the pivot."""
        dialogues = self._dialogues("train")
        found = self._distributions()
        return [fuse_distributions(self.fusion, group, dialogues, found) for group in self.fusion.groups]

    def train(self) -> list[Artifact]:
        """Train every target, and the control where the recipe wants one."""
        fused = {group: self._needed(self.fusion.fused(group), "fuse") for group in self.fusion.groups}
        made = [
            train_on_fused(self.fusion, self.fusion.target_name(group), group, fused[group])
            for group in self.fusion.groups
        ]
        if self.fusion.config.evaluation.plain_sft_control:
            group = self.fusion.groups[0]
            made.append(train_on_fused(self.fusion, CONTROL, group, fused[group], lm_weight=1.0))
        return made

    def merge(self) -> Artifact:
        """Merge the targets."""
        return merge_targets(self.fusion, list(self._targets().values()))

    def evaluate(self, names: Sequence[str] | None = None) -> ScoreTable:
        """Score the recipe's models and every checkpoint that is there, or those named, against the pivot."""
        held_out = self._dialogues("held_out")
        models: dict[str, ResolvedModel | Artifact] = {model.name: model for model in self._models(None)}
        models |= self._present_checkpoints()
        unknown = [name for name in names or () if name not in models]
        if unknown:
            raise ConfigError(f"There is no model {unknown[0]!r} to evaluate yet; there are {', '.join(models)}.")
        chosen = {name: models[name] for name in models if names is None or name in {*names, self._pivot}}
        scores = {
            name: read_scores(self.workplace, score_model(self.fusion, model, name, held_out), name)
            for name, model in chosen.items()
        }
        for name, model in chosen.items():
            score_benchmarks(self.fusion, model, name)
        return compare(scores, self._pivot)

    def judge(self, names: Sequence[str] | None = None) -> tuple[JudgedTable, ...]:
        """Have the models that ``evaluate`` takes judged on the recipe's judged benchmarks; none without any."""
        models: dict[str, ResolvedModel | Artifact] = {model.name: model for model in self._models(None)}
        models |= self._present_checkpoints()
        chosen = {name: model for name, model in models.items() if names is None or name in {*names, self._pivot}}
        return judged_tables(
            self.fusion, {name: judge_model(self.fusion, model, name) for name, model in chosen.items()}
        )

    def summarize(self) -> RunFiles:
        """Write the report of a fusion that is whole in the store."""
        fusion = self.fusion
        dialogues = PreparedDialogues(train=self._dialogues("train"), held_out=self._dialogues("held_out"))
        fused = [self._needed(fusion.fused(group), "fuse") for group in fusion.groups]
        checkpoints = {**self._targets(), **self._present_checkpoints(), FUSED: self._needed(fusion.merged(), "merge")}
        identities: dict[str, ResolvedModel | str] = {model.name: model for model in (fusion.pivot, *fusion.sources)}
        identities |= {name: made.address for name, made in checkpoints.items()}
        scores = {name: self._needed(fusion.scores(identity), "evaluate") for name, identity in identities.items()}
        benchmarks = {name: find_benchmarks(self.workplace, fusion, one) for name, one in identities.items()}
        judged = {name: find_judged(self.workplace, fusion, one, name) for name, one in identities.items()}
        return write_summary(
            fusion, dialogues, self._distributions(), fused, checkpoints, scores, benchmarks, judged, seconds=0.0
        )

    @property
    def _pivot(self) -> str:
        return self.fusion.pivot.name

    def _models(self, names: Sequence[str] | None) -> list[ResolvedModel]:
        models = {model.name: model for model in (self.fusion.pivot, *self.fusion.sources)}
        unknown = [name for name in names or () if name not in models]
        if unknown:
            raise ConfigError(f"The recipe has no model {unknown[0]!r}; it has {', '.join(models)}.")
        return [model for name, model in models.items() if names is None or name in names]

    def _dialogues(self, split: str) -> Artifact:
        return self._needed(self.fusion.dialogues(split), "prepare")

    def _distributions(self) -> dict[str, Artifact]:
        return {model.name: self._needed(self.fusion.distributions(model), "extract") for model in self._models(None)}

    def _targets(self) -> dict[str, Artifact]:
        groups = self.fusion.groups
        return {self.fusion.target_name(group): self._needed(self.fusion.target(group), "train") for group in groups}

    def _present_checkpoints(self) -> dict[str, Artifact]:
        fusion = self.fusion
        addresses = {fusion.target_name(group): fusion.target(group) for group in fusion.groups}
        if fusion.config.evaluation.plain_sft_control:
            addresses[CONTROL] = fusion.target(fusion.groups[0], lm_weight=1.0)
        addresses[FUSED] = fusion.merged()
        found = {name: find_artifact(self.workplace.store, address) for name, address in addresses.items()}
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    def _needed(self, address: str, stage: str) -> Artifact:
        found = find_artifact(self.workplace.store, address)
        if found is None:
            raise StoreError(
                f"The store has no whole result of the stage '{stage}' for this recipe; run `fuseline {stage}` first."
            )
        return found


def summarize_stored(config: FusionConfig) -> RunFiles:
    """Write the report of a recipe from what the store holds."""
    return StoredFusion(resolve_fusion(config), open_workplace()).summarize()
