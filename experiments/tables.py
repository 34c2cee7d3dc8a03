"""The tables: which models each compares, and which differences answer its question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from experiments.lab import Entry

PIVOT, SFT, SOUP = "pivot", "plain SFT", "soup of two SFT"
SELF, JOINT, FUSED = "pivot distilled into itself", "FuseLLM (all at once)", "FuseChat (VaRM)"
JOINT_SOUP = "soup of two FuseLLM"
# One source and one target: with the pivot's own distributions every pair would train the same.
ALONE = {"fusion.function": "pivot"}


@dataclass(frozen=True)
class Table:
    """One question.

    Parameters
    ----------
    question : str
    entries : tuple of Entry
    compared : tuple of (label, label)
        Pairs of which the difference is shown, the second being the baseline.
    part : {"held_out", "validation"}
        What is scored.
    """

    question: str
    entries: tuple[Entry, ...]
    compared: tuple[tuple[str, str], ...] = ()
    part: Literal["held_out", "validation"] = "held_out"


def _tuning() -> Table:
    grid = [(rate, epochs, batch) for batch in (8, 4) for rate in (3e-5, 6e-5, 1.2e-4) for epochs in (1, 2)]
    grid += [(6e-5, 3, 4), (2.4e-4, 2, 4)]
    entries = tuple(
        Entry(
            f"{SFT}, rate {1e5 * rate:g}e-5, batches of {batch}, {epochs} epoch{'s' * (epochs > 1)}",
            "plain-sft",
            {"training.learning_rate": rate, "training.epochs": epochs, "training.batch_dialogues": batch},
        )
        for rate, epochs, batch in grid
    )
    return Table("Which learning rate and how many epochs suit plain SFT best?", entries, part="validation")


def _main() -> Table:
    entries = (
        Entry(PIVOT, "pivot"),
        Entry("source maths", "maths"),
        Entry("source dialogue", "dialogue"),
        Entry("target of maths", "target:maths"),
        Entry("target of dialogue", "target:dialogue"),
        Entry(SFT, "plain-sft"),
        Entry(SELF, "target:maths", ALONE),
        Entry(SOUP, "plain-sft", {"merge.method": "linear"}, soup=True),
        Entry(JOINT, "fused", {"strategy": "joint"}),
        Entry(FUSED, "fused"),
        Entry(JOINT_SOUP, "fused", {"strategy": "joint", "merge.method": "linear"}, soup=True),
    )
    baselines = (PIVOT, SFT, SELF, SOUP, JOINT)
    return Table(
        "Does fusing beat the pivot, the controls, and fusing all at once?",
        entries,
        (
            *((FUSED, baseline) for baseline in baselines),
            *((JOINT, baseline) for baseline in (PIVOT, SFT, SELF)),
            *((JOINT_SOUP, baseline) for baseline in (SOUP, FUSED)),
            *((control, SFT) for control in (SOUP, SELF)),
        ),
    )


def _merging() -> Table:
    def line(label: str, **settings: Any) -> Entry:
        return Entry(label, "fused", {f"merge.{name}": value for name, value in settings.items()})

    entries = (
        line("VaRM, matrix"),
        line("VaRM, parameter", granularity="parameter"),
        line("linear", method="linear"),
        line("task arithmetic, 0.7", method="task_arithmetic", scaling_coefficient=0.7),
        line("TIES, density 0.2", method="ties", density=0.2),
        line("DARE, density 0.1", method="dare", density=0.1, weights=(0.5, 0.5)),
        line("SCE, all entries", method="sce"),
    )
    compared = tuple((entry.label, "linear") for entry in entries if entry.label != "linear")
    return Table("Which merge of the same two targets is best?", entries, compared)


def _fusing() -> Table:
    def line(label: str, weight: float, **fusion: str) -> Entry:
        # One target on both sources, so that the loss alone is seen, not the merge.
        settings = {"strategy": "joint", "training.lm_weight": weight}
        return Entry(label, "fused", settings | {f"fusion.{name}": choice for name, choice in fusion.items()})

    entries = (
        Entry(SFT, "plain-sft"),
        Entry(SELF, "target:maths", ALONE),
        line("MinCE, λ 0.5", 0.5),
        line("MinCE, λ 0.1", 0.1),
        line("MinCE, λ 0.9", 0.9),
        line("MinCE, λ 0.5, label where the pivot wins", 0.5, where_pivot_wins="label"),
    )
    compared = tuple((entry.label, SFT) for entry in entries[1:])
    return Table(
        "How much of the loss is the label's, and whose distribution is taken? One target on both sources, no merge.",
        entries,
        (*compared, *(("MinCE, λ 0.5", entry.label) for entry in entries[3:])),
    )


TABLES = {"tuning": _tuning(), "table1": _main(), "table2": _merging(), "table3": _fusing()}
