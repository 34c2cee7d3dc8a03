"""Everything that the report and the model card show of one run, as data with a JSON form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fusion_core.evaluation.answer_changes import AnswerChanges
from fusion_core.evaluation.benchmark_table import BenchmarkTable
from fusion_core.evaluation.dialogue_changes import DialogueChanges
from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.evaluation.score_table import ScoreTable
from fusion_core.record import Record

Role = Literal["pivot", "source", "target", "control", "fused"]


class ModelRow(Record):
    """One model of the run.

    Parameters
    ----------
    name : str
        The same name as in the score table.
    role : str
        pivot, source, target, control or fused.
    parameters : int or None
        Number of parameters; None where not known.
    tokenizer_size : int or None
        Entries of the tokenizer, added tokens included.
    tokenizer_digest : str
        Tells whether two models share a tokenizer.
    digest : str
        Content digest of the model.
    origin : str
        Hub repository or folder name; for trained and merged models, what they were made from.
    revision : str or None
        Commit of a hub model.
    license : str or None
        As the model's own folder states it.
    note : str
        The recipe's line on what the model is.
    """

    name: str
    role: Role
    parameters: int | None = None
    tokenizer_size: int | None = None
    tokenizer_digest: str = ""
    digest: str = ""
    origin: str = ""
    revision: str | None = None
    license: str | None = None
    note: str = ""


class DataRow(Record):
    """Dialogues of one domain, and where they are from."""

    domain: str
    train_dialogues: int
    held_out_dialogues: int
    files: tuple[str, ...] = ()
    license: str | None = None


class StageRow(Record):
    """One unit of work: what it was for, whether it was found or computed, and what it cost.

    Parameters
    ----------
    stage, subject : str
        Such as 'extract' and the model's name.
    status : str
        cached: found whole in the store. computed: done in this run.
    seconds : float
        Wall time in this run.
    bytes : int
        Size of what it published, or of what was found.
    positions : int or None
        Response positions handled, for stages that count them.
    address : str
        Key in the object store.
    seconds_when_computed : float
        Wall time when it was computed, in this run or an earlier one.
    devices : int
        Devices it ran on at once.
    """

    stage: str
    subject: str
    status: Literal["cached", "computed"]
    seconds: float
    bytes: int
    positions: int | None = None
    address: str = ""
    seconds_when_computed: float = 0.0
    devices: int = 1


class CoverageRow(Record):
    """How far one source's distributions reached the pivot's positions in one domain.

    Parameters
    ----------
    source, domain : str
    positions : int
        Response positions of the pivot.
    at_boundary, conditioned, fallen_back : int
        Positions where both models have a boundary; inside a source token, conditioned on the bytes read; where no
        entry fitted. Their sum is ``positions``.
    mass_kept : float
        Share of the source's stored mass that the projected rows hold, over the supervised positions.
    source_won : int
        Positions where the source had the lowest cross-entropy of all models.
    """

    source: str
    domain: str
    positions: int
    at_boundary: int
    conditioned: int
    fallen_back: int
    mass_kept: float
    source_won: int

    @model_validator(mode="after")
    def _parts_add_up(self) -> CoverageRow:
        if self.at_boundary + self.conditioned + self.fallen_back != self.positions:
            raise ValueError(
                f"at_boundary + conditioned + fallen_back is "
                f"{self.at_boundary + self.conditioned + self.fallen_back}, not positions = {self.positions}"
            )
        return self


class TrainingCurve(Record):
    """Losses of one target over its optimizer steps.

    Parameters
    ----------
    target : str
    lm_weight : float
        Share of the label's cross-entropy in the loss.
    steps : tuple of int
        Optimizer steps at which the values below were taken; all have this length.
    lm_loss, fusion_loss : tuple of float
        Nats per response position; fusion_loss is None where lm_weight = 1 leaves it out.
    learning_rate : tuple of float
    """

    target: str
    lm_weight: float
    steps: tuple[int, ...]
    lm_loss: tuple[float, ...]
    fusion_loss: tuple[float | None, ...]
    learning_rate: tuple[float, ...]

    @model_validator(mode="after")
    def _equal_lengths(self) -> TrainingCurve:
        for name in ("lm_loss", "fusion_loss", "learning_rate"):
            if len(getattr(self, name)) != len(self.steps):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(self.steps)} steps")
        return self


class MergeSummary(Record):
    """Weights of the merge.

    Parameters
    ----------
    method, granularity : str
    targets : tuple of str
        Names of the merged targets.
    weights : dict
        Tensor name to one weight per target.
    """

    method: str
    granularity: str
    targets: tuple[str, ...]
    weights: dict[str, tuple[float, ...]]

    @model_validator(mode="after")
    def _weight_per_target(self) -> MergeSummary:
        for name, weights in self.weights.items():
            if len(weights) != len(self.targets):
                raise ValueError(f"tensor {name} has {len(weights)} weights for {len(self.targets)} targets")
        return self


class Price(Record):
    """What an hour of one device costs at the place that ran it."""

    per_hour: float
    currency: str


class RunSummary(Record):
    """One run from its recipe to its scores.

    Parameters
    ----------
    name : str
        The recipe's name.
    created : str
        When the run ended, ISO 8601 with time zone.
    seconds : float
        Wall time of the whole run.
    recipe : dict
        The recipe as plain values, as YAML would hold it.
    command : str
        What was typed, to be typed again.
    device : str
        What computed, in words.
    peak_memory_bytes : int or None
        Highest resident memory of the run's process, where measured.
    models, data, stages, coverage, curves : tuples of rows
    quarantined_dialogues : int
        Malformed dialogues set aside.
    scores : ScoreTable or None
        Held-out nats per byte; None where nothing was scored.
    benchmarks : BenchmarkTable or None
        Benchmarks without a judge; None where the recipe asks for none.
    judged : tuple of JudgedTable
        Benchmarks with one.
    dialogue_changes : DialogueChanges or None
        Held-out dialogues on which the fused model gained and lost most.
    answer_changes : AnswerChanges or None
        Benchmark questions that it gained and lost.
    merge : MergeSummary or None
        None with a single target.
    price : Price or None
        None where nobody gave one.
    uses_gpu : bool
        Whether `device` is a GPU.
    versions : dict
        Package to version.
    """

    name: str
    created: str
    seconds: float
    recipe: dict[str, Any]
    command: str
    device: str
    peak_memory_bytes: int | None = None
    models: tuple[ModelRow, ...]
    data: tuple[DataRow, ...] = ()
    quarantined_dialogues: int = 0
    scores: ScoreTable | None = None
    benchmarks: BenchmarkTable | None = None
    judged: tuple[JudgedTable, ...] = ()
    dialogue_changes: DialogueChanges | None = None
    answer_changes: AnswerChanges | None = None
    stages: tuple[StageRow, ...] = ()
    coverage: tuple[CoverageRow, ...] = ()
    curves: tuple[TrainingCurve, ...] = ()
    merge: MergeSummary | None = None
    price: Price | None = None
    uses_gpu: bool = False
    versions: dict[str, str] = Field(default_factory=dict)

    def model(self, name: str) -> ModelRow | None:
        """Return the model of this name, or None."""
        return next((model for model in self.models if model.name == name), None)

    def models_of(self, *roles: Role) -> tuple[ModelRow, ...]:
        """Return the models that have one of these roles, in their order."""
        return tuple(model for model in self.models if model.role in roles)
