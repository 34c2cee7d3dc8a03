"""Scores of any model that a recipe leads to, computed only where the store does not hold them.

An address is known before anything runs, so scores are looked up first: what was scored once needs neither training
nor its checkpoint again, and a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fusion_core.config import FusionConfig
from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.models.identity import ResolvedModel
from fusion_core.recipes import load_recipe
from fusion_core.sweeps import with_settings
from tasks.addresses import CONTROL, FUSED, ResolvedFusion, digest_of
from tasks.resolve import resolve_fusion
from tasks.stages.evaluate import read_scores, score_model
from tasks.stages.extract import extract_distributions
from tasks.stages.fuse import fuse_distributions
from tasks.stages.merge import merge_targets
from tasks.stages.prepare import prepare_dataset
from tasks.stages.train import train_on_fused
from tasks.store.publication import Artifact, discard, find_artifact
from tasks.store.workplace import Workplace, computed_by, open_workplace

RECIPE = Path(__file__).parent / "recipe.yaml"
# MinCE as in the paper, unless a line says otherwise; the other functions do not ask.
PAPER = {"fusion.where_pivot_wins": "distribution"}
# Soups are made of runs whose seeds lie this far apart, so that those of different seeds share no run.
SOUP_STRIDE = 1000


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Parameters
    ----------
    label : str
    model : str
        ``pivot`` or a source by its name; ``plain-sft``; ``fused``; ``target:<source>``.
    settings : mapping
        What differs from the recipe, by dotted names.
    soup : bool
        Train the model as often as there are sources, each time with another seed, and merge by the recipe.
    sources : tuple of str
        Which of the recipe's sources are fused, and in which order; empty: all.
    """

    label: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    soup: bool = False
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by its address, which need not have been made."""

    address: str
    make: Callable[[], Artifact]


@dataclass(frozen=True)
class Found:
    """The scores of one model, and the MLflow run that computed them."""

    scores: HeldOutScores
    run: str


def load_lab_recipe(part: str, path: Path = RECIPE) -> FusionConfig:
    """The recipe with ``held_out`` or ``validation`` as what is scored."""
    recipe = load_recipe(path)
    files = []
    for file in recipe.dialogues.files:
        folder = Path(str(file.path)).parent
        name = part if folder.name == "held_out" else folder.name
        files.append(file.model_copy(update={"path": folder.parent / name / Path(str(file.path)).name}))
    return recipe.model_copy(update={"dialogues": recipe.dialogues.model_copy(update={"files": tuple(files)})})


class Lab:
    """One recipe in many variants.

    Parameters
    ----------
    recipe : FusionConfig
    run : str
        The MLflow run below which stages log.
    """

    def __init__(self, recipe: FusionConfig, run: str | None) -> None:
        self.recipe, self.run = recipe, run
        self.workplace: Workplace = open_workplace()
        self._resolved: dict[str, ResolvedFusion] = {}

    def scores(self, entry: Entry, seed: int) -> Found:
        """Score one line of a table with one seed."""
        fusion = self.resolve(self._settings(entry), seed)
        models = {model.name: model for model in (fusion.pivot, *fusion.sources)}
        subject: ResolvedModel | Checkpoint = models.get(entry.model) or self.checkpoint(entry, seed)
        address = fusion.scores(subject if isinstance(subject, ResolvedModel) else subject.address)
        found = find_artifact(self.workplace.store, address)
        if found is None:
            held_out = prepare_dataset(fusion, self.run).held_out
            made = subject if isinstance(subject, ResolvedModel) else subject.make()
            found = score_model(fusion, made, entry.label, held_out, self.run)
            if isinstance(made, Artifact) and made.address.startswith("merged/"):
                # Made again in seconds; on disk it is as large as the pivot.
                discard(self.workplace.store, made.address)
        return Found(read_scores(self.workplace, found, entry.label), computed_by(found))

    def checkpoint(self, entry: Entry, seed: int) -> Checkpoint:
        """The checkpoint of an entry that is no model of the recipe."""
        fusion = self.resolve(self._settings(entry), seed)
        if entry.soup:
            # Whole runs are merged, so the recipe's merge counts even where one run trains a single target.
            chosen = self.chosen(entry.sources)
            merge = {name: value for name, value in entry.settings.items() if name.startswith("merge.")}
            training = chosen | {name: value for name, value in entry.settings.items() if name not in merge}
            merge = chosen | merge
            seeds = [seed + SOUP_STRIDE * number for number in range(len(fusion.sources))]
            runs = [self._trained(self.resolve(training, one), entry.model) for one in seeds]
            return self._merged(self.resolve(merge, seed), runs)
        if entry.model == FUSED and fusion.config.strategy == "pairwise":
            return self._merged(fusion, [self._target(fusion, group) for group in fusion.groups])
        return self._trained(fusion, entry.model)

    def chosen(self, sources: Sequence[str]) -> dict[str, Any]:
        """The setting that leaves some of the recipe's sources, in this order; none named: nothing is changed."""
        if not sources:
            return {}
        given = {source.name: source for source in self.recipe.sources}
        return {"sources": [given[name].model_dump(mode="json", exclude_unset=True) for name in sources]}

    def resolve(self, settings: Mapping[str, Any], seed: int) -> ResolvedFusion:
        """The recipe's variant with its models and data pinned; weights are read once for all variants of them."""
        paper = {} if "fusion.function" in settings else PAPER
        config = with_settings(self.recipe, {**paper, **settings, "training.seed": seed})
        key = digest_of(
            *(part.model_dump(mode="json") for part in (config.pivot, *config.sources, config.dialogues)),
            config.extraction.template,
        )
        if key not in self._resolved:
            self._resolved[key] = resolve_fusion(config)
        return replace(self._resolved[key], config=config)

    def _settings(self, entry: Entry) -> dict[str, Any]:
        """What an entry changes of the recipe; of a soup, whose runs and merge differ, only what both have."""
        return self.chosen(entry.sources) | ({} if entry.soup else dict(entry.settings))

    def _trained(self, fusion: ResolvedFusion, model: str) -> Checkpoint:
        if model == CONTROL:
            return self._target(fusion, fusion.groups[0], lm_weight=1.0)
        if model == FUSED:
            return self._target(fusion, fusion.sources)
        name = model.removeprefix("target:")
        return self._target(fusion, next(group for group in fusion.groups if group[0].name == name))

    def _target(
        self, fusion: ResolvedFusion, group: tuple[ResolvedModel, ...], lm_weight: float | None = None
    ) -> Checkpoint:
        address = fusion.target(group, lm_weight=lm_weight)
        name = CONTROL if lm_weight is not None else fusion.target_name(group)
        return Checkpoint(address, partial(self._train, fusion, name, group, address, lm_weight))

    def _train(
        self,
        fusion: ResolvedFusion,
        name: str,
        group: tuple[ResolvedModel, ...],
        address: str,
        lm_weight: float | None,
    ) -> Artifact:
        found = find_artifact(self.workplace.store, address)
        if found is not None:
            return found
        dialogues = prepare_dataset(fusion, self.run).train
        models = (fusion.pivot, *group)
        distributions = {model.name: extract_distributions(fusion, model, dialogues, self.run) for model in models}
        fused = fuse_distributions(fusion, group, dialogues, distributions, self.run)
        return train_on_fused(fusion, name, group, fused, self.run, lm_weight)

    def _merged(self, fusion: ResolvedFusion, targets: list[Checkpoint]) -> Checkpoint:
        address = fusion.merge_of([target.address for target in targets])
        return Checkpoint(address, lambda: merge_targets(fusion, [target.make() for target in targets], self.run))
