"""The tables: which models each compares, and which differences answer its question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from experiments.alignments import ALIGNMENTS, BYTES
from experiments.lab import Entry

PIVOT, SFT, SOUP = "pivot", "plain SFT", "soup of two SFT"
SELF, JOINT, FUSED = "pivot distilled into itself", "FuseLLM (all at once)", "FuseChat (VaRM)"
JOINT_SOUP, MINCE = "soup of two FuseLLM", "MinCE, λ 0.5"
FUSED_LABEL = "FuseChat, label where the pivot wins"
LABEL = {"fusion.where_pivot_wins": "label"}
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
    recipe : str
        What the table starts from, a file beside this one.
    """

    question: str
    entries: tuple[Entry, ...]
    compared: tuple[tuple[str, str], ...] = ()
    part: Literal["held_out", "validation"] = "held_out"
    recipe: str = "recipe.yaml"


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


def _soup() -> Table:
    entries = tuple(one for one in _main().entries if one.label in (SOUP, FUSED))
    return Table(
        "Does FuseChat beat a soup of as many SFT runs? Table 1's two lines, with more seeds.",
        entries,
        ((FUSED, SOUP),),
    )


def _merging() -> Table:
    def line(label: str, **settings: Any) -> Entry:
        return Entry(label, "fused", {f"merge.{name}": value for name, value in settings.items()})

    entries = (
        line("VaRM, matrix"),
        *(line(f"VaRM, {unit}", granularity=unit) for unit in ("parameter", "module", "layer", "model")),
        line("linear", method="linear"),
        line("task arithmetic, 0.7", method="task_arithmetic", scaling_coefficient=0.7),
        line("TIES, density 0.2", method="ties", density=0.2),
        line("DARE, density 0.1", method="dare", density=0.1, weights=(0.5, 0.5)),
        line("SCE, all entries", method="sce"),
        line("SLERP", method="slerp"),
    )
    compared = tuple((entry.label, "linear") for entry in entries if entry.label != "linear")
    return Table("Which merge of the same two targets is best?", entries, compared)


def _joint(label: str, settings: Mapping[str, Any] = {}, weight: float = 0.5) -> Entry:
    """One target on both sources, so that what is compared is seen and not the merge."""
    return Entry(label, "fused", {"strategy": "joint", "training.lm_weight": weight, **settings})


def _fusing() -> Table:
    entries = (
        Entry(SFT, "plain-sft"),
        Entry(SELF, "target:maths", ALONE),
        _joint(MINCE),
        _joint("MinCE, λ 0", weight=0.0),
        _joint("MinCE, λ 0.1", weight=0.1),
        _joint("MinCE, λ 0.3", weight=0.3),
        _joint("MinCE, λ 0.7", weight=0.7),
        _joint("MinCE, λ 0.9", weight=0.9),
        _joint("MinCE, λ 0.5, label where the pivot wins", LABEL),
        _joint("MinCE by token, λ 0.5", {"fusion.level": "token"}),
        _joint("MinCE, CE per token, λ 0.5", {"fusion.cross_entropy_unit": "token"}),
        _joint("AvgCE, λ 0.5", {"fusion.function": "avgce"}),
    )
    compared = tuple((entry.label, SFT) for entry in entries[1:])
    return Table(
        "How much of the loss is the label's, and whose distribution is taken? One target on both sources, no merge.",
        entries,
        (*compared, *((MINCE, entry.label) for entry in entries[3:])),
    )


# λ 1 is plain SFT.
RATES, WEIGHTS = (6e-5, 1.2e-4, 2.4e-4), (0.0, 0.3, 0.5, 0.7, 0.9)


def at_rate(rate: float, weight: float | None = None) -> str:
    """The label of plain SFT, or of one λ, at a learning rate."""
    return f"{SFT if weight is None else f'λ {weight:g}'}, rate {1e5 * rate:g}e-5"


def _rates() -> Table:
    entries = []
    for rate in RATES:
        setting = {"training.learning_rate": rate}
        entries += [Entry(at_rate(rate), "plain-sft", setting)]
        entries += [_joint(at_rate(rate, weight), setting, weight) for weight in WEIGHTS]
    compared = [(at_rate(rate, weight), at_rate(rate)) for rate in RATES for weight in WEIGHTS]
    return Table("Does the best λ depend on the learning rate?", tuple(entries), tuple(compared))


def _always() -> Table:
    source = {"fusion.function": "source"}
    entries: list[Entry] = []
    for name in ("maths", "dialogue"):
        entries += [Entry(f"target of {name}, MinCE", f"target:{name}")]
        entries += [Entry(f"target of {name}, always the source", f"target:{name}", source)]
    entries += [Entry("FuseChat, MinCE", "fused"), Entry("FuseChat, always the source", "fused", source)]
    entries += [Entry(FUSED_LABEL, "fused", LABEL)]
    pairs = [(entries[index].label, entries[index + 1].label) for index in (0, 2, 4)]
    pairs += [("FuseChat, MinCE", FUSED_LABEL)]
    return Table("What should be learnt where the pivot predicts better?", tuple(entries), tuple(pairs))


def _alignments() -> Table:
    entries = tuple(_joint(label, settings) for label, settings in ALIGNMENTS.items())
    compared = tuple((BYTES, entry.label) for entry in entries[1:])
    return Table("Does an alignment that carries more over lead to a better score?", entries, compared)


def _top_k() -> Table:
    entries = tuple(_joint(f"k = {top_k}", {"extraction.top_k": top_k}) for top_k in (1, 5, 10, 20, 50))
    entries += (_joint("10 samples", {"extraction.truncation": "sampled"}),)
    compared = (*((entry.label, "k = 10") for entry in entries if entry.label != "k = 10"), ("10 samples", "k = 20"))
    return Table("How many entries of a distribution are worth their place?", entries, compared)


# In this order they are added in table 6; the last two learnt what the first two did, with the pivot's tokenizer.
ADDED = ("maths", "dialogue", "code", "maths-own", "dialogue-own")
MORE_SOURCES = "recipe_sources.yaml"


def _own_tokenizer() -> Table:
    other, own = ("maths", "dialogue"), ("maths-own", "dialogue-own")
    joint = [
        Entry(f"both sources, {kind}", "fused", {"strategy": "joint"}, sources=names)
        for kind, names in (("tokenizers of their own", other), ("the pivot's tokenizer", own))
    ]
    targets = [Entry(f"target of {name}", f"target:{name}", sources=pair) for pair in (other, own) for name in pair]
    given = [Entry(f"source {name}", name, sources=pair) for pair in (other, own) for name in pair]
    compared = [(one.label, f"target of {name}") for one, name in zip(targets[2:], other, strict=True)]
    return Table(
        "Does it cost anything that a source has another tokenizer?",
        (*given, *targets, *joint),
        (*compared, (joint[1].label, joint[0].label)),
        recipe=MORE_SOURCES,
    )


def _numbers() -> Table:
    chat, at_once = [Entry("1 source", f"target:{ADDED[0]}", sources=ADDED[:1])], []
    for number in range(2, len(ADDED) + 1):
        chat += [Entry(f"{number} sources, FuseChat", "fused", sources=ADDED[:number])]
        at_once += [Entry(f"{number} sources, FuseLLM", "fused", {"strategy": "joint"}, sources=ADDED[:number])]
    soup = Entry(f"soup of {len(ADDED)} SFT", "plain-sft", {"merge.method": "linear"}, soup=True, sources=ADDED)
    given = [Entry(f"source {name}", name, sources=ADDED) for name in ADDED]
    steps = [(chat[index + 1].label, one.label) for index, one in enumerate(chat[:-1])]
    steps += [(at_once[index + 1].label, one.label) for index, one in enumerate(at_once[:-1])]
    rivals = [(one.label, other.label) for one, other in zip(chat[1:], at_once, strict=True)]
    return Table(
        "How many sources pay, and does it cost anything to add them one by one?",
        (*given, Entry(SFT, "plain-sft", sources=ADDED), *chat, *at_once, soup),
        (*steps, *rivals, *((one[-1].label, rival) for rival in (SFT, soup.label) for one in (chat, at_once))),
        recipe=MORE_SOURCES,
    )


def _templates() -> Table:
    names, pivots = ("maths", "dialogue", "code"), {"extraction.template": "pivot"}
    entries: list[Entry] = []
    for model, label in (("code", "source code"), ("target:code", "target of code")):
        entries += [Entry(f"{label}, native template", model, sources=names)]
        entries += [Entry(f"{label}, the pivot's", model, pivots, sources=names)]
    joint = {"strategy": "joint"}
    entries += [Entry("three sources, native templates", "fused", joint, sources=names)]
    entries += [Entry("three sources, the pivot's", "fused", {**joint, **pivots}, sources=names)]
    pairs = [(entries[index].label, entries[index + 1].label) for index in (0, 2, 4)]
    # Whether what a source knows of code arrives where the source knows the style of the dialogues, too.
    pairs += [(entries[index].label, SFT) for index in (2, 4)]
    entries += [Entry(SFT, "plain-sft", sources=names)]
    return Table(
        "Should a source read its own chat template or the pivot's?", tuple(entries), tuple(pairs), recipe=MORE_SOURCES
    )


SCRATCH = "recipe_scratch.yaml"
SOUP_OF_THREE, JOINT_SOUP_OF_THREE = "soup of three SFT", "soup of three FuseLLM"
JOINT_OF_PAPER = "FuseLLM, λ 0.9"


def _scratch_tuning() -> Table:
    grid = [(rate, epochs) for epochs in (2, 4, 8) for rate in (6e-4, 1.2e-3, 2.4e-3)]
    grid += [(3e-4, 8), (3e-4, 16), (6e-4, 16)]
    entries = tuple(
        Entry(
            f"{SFT}, rate {1e5 * rate:g}e-5, {epochs} epochs",
            "plain-sft",
            {"training.learning_rate": rate, "training.epochs": epochs},
        )
        for rate, epochs in grid
    )
    return Table("Which rate and how many epochs suit plain SFT of the toy best?", entries, (), "validation", SCRATCH)


def _scratch() -> Table:
    names = ("maths", "code", "dialogue")
    average = {"merge.method": "linear"}
    entries = (
        Entry(PIVOT, "pivot"),
        *(Entry(f"source {name}", name) for name in names),
        *(Entry(f"target of {name}", f"target:{name}") for name in names),
        Entry(SFT, "plain-sft"),
        Entry(SELF, "target:maths", ALONE),
        Entry(SOUP_OF_THREE, "plain-sft", average, soup=True),
        Entry(JOINT, "fused", {"strategy": "joint"}),
        Entry(JOINT_OF_PAPER, "fused", {"strategy": "joint", "training.lm_weight": 0.9}),
        Entry(FUSED, "fused"),
        Entry(FUSED_LABEL, "fused", LABEL),
        Entry(JOINT_SOUP_OF_THREE, "fused", {"strategy": "joint"} | average, soup=True),
    )
    return Table(
        "Does fusing pay among models of truly different architecture? Toys, trained from nothing.",
        entries,
        (
            *((FUSED, baseline) for baseline in (PIVOT, SFT, SELF, SOUP_OF_THREE, JOINT)),
            *((JOINT, baseline) for baseline in (PIVOT, SFT, SELF)),
            (JOINT_SOUP_OF_THREE, SOUP_OF_THREE),
            (JOINT, JOINT_OF_PAPER),
            *((FUSED_LABEL, baseline) for baseline in (FUSED, SFT, SOUP_OF_THREE, JOINT)),
            (SELF, SFT),
        ),
        recipe=SCRATCH,
    )


def _scratch_paper() -> Table:
    fused = "FuseChat, λ 0.9"
    entries = (
        Entry(SFT, "plain-sft"),
        Entry(FUSED, "fused"),
        Entry(fused, "fused", {"training.lm_weight": 0.9}),
        Entry(FUSED_LABEL, "fused", LABEL),
    )
    compared = ((fused, SFT), (fused, FUSED), (FUSED_LABEL, fused))
    return Table("Does the paper's λ go better with its rule?", entries, compared, recipe=SCRATCH)


TABLES = {
    "tuning": _tuning(),
    "table1": _main(),
    "table1_soup": _soup(),
    "table2": _merging(),
    "table3": _fusing(),
    "table3_rates": _rates(),
    "table3_source": _always(),
    "table4_scores": _alignments(),
    "table4_own": _own_tokenizer(),
    "table5": _top_k(),
    "table6": _numbers(),
    "table7": _templates(),
    "tuning_scratch": _scratch_tuning(),
    "table8": _scratch(),
    "table8_paper": _scratch_paper(),
}
