"""The pages' figures: what the committed results give, worked by hand on made-up ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments import evidence
from experiments.lab import RECIPE, Entry, load_lab_recipe
from experiments.results import Difference, Results, Row
from experiments.tables import FUSED, PIVOT, TABLES
from fusion_core.dialogues import load_dialogues, prepare_dialogues
from fusion_core.report.sweep_table import SweepCell
from fusion_core.sweeps import with_settings

DATA = evidence.ROOT / "experiments" / "data"


def difference(domain: str, mean: float, half: float | None, low: float, high: float) -> Difference:
    cell = SweepCell(mean=mean, low=half and mean - half, high=half and mean + half, seeds=3 if half else 1)
    return Difference(label=FUSED, baseline=PIVOT, domain=domain, seeds=cell, low=low, high=high)


def results(*differences: Difference) -> Results:
    rows = [Row(label=PIVOT, seed=None, nats_per_byte={"mean": 0.5, "code": 0.5}, run="r")]
    rows += [
        Row(label=FUSED, seed=seed, nats_per_byte={"mean": mean, "code": mean}, run="r")
        for seed, mean in enumerate((0.39, 0.4, 0.41))
    ]
    return Results(
        table="t", question="?", seeds=(0, 1, 2), dialogues={"code": 2}, rows=tuple(rows), differences=differences,
        run="r", code="c",
    )  # fmt: skip


def test_scores_are_means_over_seeds_with_their_interval() -> None:
    lines = evidence.scores(results()).splitlines()
    # sd .01, t(.975, 2) = 4.3027: 4.3027 x .01 / sqrt(3) = .0248.
    assert lines[2:] == ["| pivot | 0.5000 | 0.5000 |", f"| {FUSED} | **0.4000** ± 0.0248 | **0.4000** ± 0.0248 |"]


def test_a_difference_is_bold_only_where_both_intervals_leave_zero_out() -> None:
    code = difference("code", -0.1, 0.02, -0.12, -0.09)
    for mean, is_bold in (
        (difference("mean", -0.1, 0.02, -0.11, -0.09), True),
        (difference("mean", -0.1, 0.11, -0.11, -0.09), False),
        (difference("mean", -0.1, 0.02, -0.11, 0.01), False),
        (difference("mean", -0.1, None, -0.11, -0.09), False),
    ):
        line = evidence.compared(results(mean, code)).splitlines()[2]
        assert ("**-100.0**" in line) == is_bold
        assert line.endswith("| -100.0 (-120.0 to -90.0) |")
    assert "| one run |" in line


def test_the_headline_is_in_percent_of_the_rival() -> None:
    shown = evidence.headline(results(difference("mean", -0.1, 0.02, -0.11, -0.09)))
    assert shown.splitlines()[2] == f"| {FUSED} against {PIVOT} | -20.0 % | -24.0 to -16.0 % | -22.0 to -18.0 % |"


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.name)
def test_committed_pages_have_the_figures_of_the_committed_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert evidence.with_figures(text) == text, "run `python -m experiments.evidence`"
    assert "<!-- figures " in text


def test_every_difference_in_the_prose_stands_in_the_tables() -> None:
    numbers = re.compile(r"[+-](\d+\.\d)\b(?! %)")
    page, tables = (path.read_text(encoding="utf-8") for path in evidence.PAGES[:2])
    prose = evidence.BLOCK.sub("", page)
    assert numbers.search(prose)
    assert set(numbers.findall(prose)) <= set(numbers.findall(tables))


def test_every_variant_is_a_valid_recipe_and_every_label_is_its_own() -> None:
    for table in TABLES.values():
        recipe = load_lab_recipe(table.part, RECIPE.with_name(table.recipe))
        for entry in table.entries:
            for settings in parts(entry):
                with_settings(recipe, settings)
        labels = [entry.label for entry in table.entries]
        assert len(set(labels)) == len(labels)
        assert {label for pair in table.compared for label in pair} <= set(labels)


def parts(entry: Entry) -> list[dict[str, Any]]:
    """Return the settings of an entry; those of a soup's runs and of their merge apart."""
    merge = {name: value for name, value in entry.settings.items() if name.startswith("merge.")}
    rest = {name: value for name, value in entry.settings.items() if name not in merge}
    return [merge, rest] if entry.soup else [{**rest, **merge}]


@pytest.mark.parametrize("part", ["held_out", "validation"])
def test_the_products_split_is_that_of_the_committed_files(part: str, tmp_path: Path) -> None:
    dialogues = load_lab_recipe(part).dialogues
    prepare_dialogues([(file, Path(str(file.path))) for file in dialogues.files], dialogues, tmp_path / "out")
    for side, folder in (("train", "fusing"), ("held_out", part)):
        found = [one for path in sorted((tmp_path / "out" / side).glob("*.parquet")) for one in load_dialogues(path)]
        assert sorted(one.turns[0].content for one in found) == sorted(openings(folder))


def test_no_opening_is_on_two_sides() -> None:
    sides = [set(openings(folder)) for folder in ("fusing", "validation", "held_out")]
    assert [len(side) for side in sides] == [120, 90, 450]
    assert len(set.union(*sides)) == 660


def openings(folder: str) -> list[str]:
    lines = [line for path in sorted((DATA / folder).glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line)["messages"][0]["content"] for line in lines]
