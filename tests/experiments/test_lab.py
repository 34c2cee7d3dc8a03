"""Which checkpoints an entry needs, by their addresses; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.lab import RECIPE, SOUP_STRIDE, Entry, Lab, load_lab_recipe
from experiments.tables import ADDED, MORE_SOURCES
from fusion_core.models.identity import ResolvedModel
from fusion_core.sweeps import with_settings
from tasks.addresses import ResolvedFusion


class AddressesOnly(Lab):
    """A lab whose models are not read."""

    def resolve(self, settings: Mapping[str, Any], seed: int) -> ResolvedFusion:
        config = with_settings(self.recipe, {**settings, "training.seed": seed})
        pivot, *sources = (
            ResolvedModel(name, Path(name), f"{number:02d}" * 32, "ff" * 32)
            for number, name in enumerate(("pivot", *(source.name for source in config.sources)))
        )
        return ResolvedFusion(config, pivot, tuple(sources), (), "dd" * 32, "template")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    return AddressesOnly(load_lab_recipe("held_out"), None)


def test_an_entry_leads_to_what_the_product_would_make(lab: Lab) -> None:
    fusion = lab.resolve({}, 3)
    maths, dialogue = fusion.groups
    assert lab.checkpoint(Entry("fused", "fused"), 3).address == fusion.merged()
    assert lab.checkpoint(Entry("target", "target:dialogue"), 3).address == fusion.target(dialogue)
    assert lab.checkpoint(Entry("sft", "plain-sft"), 3).address == fusion.target(maths, lm_weight=1.0)
    joint = Entry("joint", "fused", {"strategy": "joint"})
    assert lab.checkpoint(joint, 3).address == lab.resolve(joint.settings, 3).merged()


def test_a_soup_is_a_merge_of_runs_of_other_seeds(lab: Lab) -> None:
    soup = Entry("soup", "plain-sft", {"merge.method": "linear"}, soup=True)
    runs = [lab.resolve({}, seed) for seed in (3, 3 + SOUP_STRIDE)]
    linear = lab.resolve({"merge.method": "linear"}, 3)
    expected = linear.merge_of([one.target(one.groups[0], lm_weight=1.0) for one in runs])
    assert lab.checkpoint(soup, 3).address == expected
    assert lab.checkpoint(replace(soup, settings={}), 3).address != expected
    joint = replace(soup, model="fused", settings={"strategy": "joint", "merge.method": "linear"})
    made = [lab.resolve({"strategy": "joint"}, seed) for seed in (3, 3 + SOUP_STRIDE)]
    assert lab.checkpoint(joint, 3).address == linear.merge_of([one.merged() for one in made])


def test_an_entry_takes_the_sources_it_names_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    lab = AddressesOnly(load_lab_recipe("held_out", RECIPE.with_name(MORE_SOURCES)), None)
    named = {source.name: source.model_dump(mode="json", exclude_unset=True) for source in lab.recipe.sources}
    for count in (1, 3):
        expected = lab.resolve({"sources": [named[name] for name in ADDED[:count]]}, 3)
        assert [source.name for source in expected.sources] == list(ADDED[:count])
        assert lab.checkpoint(Entry("some", "fused", sources=ADDED[:count]), 3).address == expected.merged()
    soup = Entry("soup", "plain-sft", {"merge.method": "linear"}, soup=True, sources=ADDED[:3])
    runs = [lab.resolve({}, 3 + SOUP_STRIDE * number) for number in range(3)]
    linear = lab.resolve({"merge.method": "linear"}, 3)
    made = linear.merge_of([one.target(one.groups[0], lm_weight=1.0) for one in runs])
    assert lab.checkpoint(soup, 3).address == made
