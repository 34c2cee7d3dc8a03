"""What an address depends on, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fusion_core.config import FusionConfig
from fusion_core.models.identity import ResolvedModel
from tasks.addresses import ResolvedFusion


def model(name: str, digest: str) -> ResolvedModel:
    return ResolvedModel(name, Path(f"/models/{name}"), digest * 32, digest * 32)


def fusion(**sections: dict) -> ResolvedFusion:
    config = FusionConfig.model_validate(
        {
            "name": "recipe",
            "pivot": {"name": "pivot", "path": "pivot"},
            "sources": [{"name": "a", "path": "a"}, {"name": "b", "path": "b"}],
            "dialogues": {"files": [{"path": "data.jsonl"}]},
            **sections,
        }
    )
    return ResolvedFusion(config, model("pivot", "00"), (model("a", "aa"), model("b", "bb")), (), "dd" * 32, "template")


def addresses(of: ResolvedFusion) -> dict[str, str]:
    first = of.groups[0]
    return {
        "extract": of.distributions(of.sources[0]),
        "fuse": of.fused(first),
        "train": of.target(first),
        "control": of.target(first, lm_weight=1.0),
        "merge": of.merged(),
    }


def changed(of: ResolvedFusion) -> set[str]:
    base = addresses(fusion())
    return {stage for stage, address in addresses(of).items() if address != base[stage]}


@pytest.mark.parametrize(
    ("sections", "stages"),
    [
        ({"name": "other"}, set()),
        ({"extraction": {"batch_tokens": 100}}, set()),
        ({"extraction": {"placement": "replicas", "processes": 2}}, set()),
        ({"extraction": {"placement": "spread"}}, set()),
        ({"extraction": {"backend": "vllm"}}, {"extract", "fuse", "train", "merge"}),
        ({"training": {"micro_batch_tokens": 100, "checkpoint_steps": 7}}, set()),
        ({"extraction": {"top_k": 5}}, {"extract", "fuse", "train", "merge"}),
        ({"fusion": {"level": "token"}}, {"fuse", "train", "merge"}),
        ({"fusion": {"function": "source"}}, {"fuse", "train", "merge"}),
        ({"fusion": {"function": "pivot"}}, {"fuse", "train", "merge"}),
        ({"alignment": {"vocabulary": "exact"}}, {"fuse", "train", "merge"}),
        ({"training": {"lm_weight": 0.3}}, {"train", "merge"}),
        ({"training": {"learning_rate": 0.3}}, {"train", "control", "merge"}),
        ({"merge": {"method": "linear"}}, {"merge"}),
    ],
)
def test_a_setting_changes_the_addresses_below_it_and_no_others(sections: dict, stages: set[str]) -> None:
    assert changed(fusion(**sections)) == stages


def test_settings_that_dtw_does_not_read_are_no_part_of_an_address() -> None:
    paper = {"positions": "dtw", "vocabulary": "statistics"}
    spelled = fusion(alignment={**paper, "condition_inside_tokens": False, "gold_consistent": False})
    assert addresses(spelled) == addresses(fusion(alignment=paper))
    assert changed(spelled) == {"fuse", "train", "merge"}


def test_names_and_places_of_models_are_no_part_of_an_address() -> None:
    moved = fusion()
    moved = replace(
        moved, sources=tuple(replace(m, name=f"{m.name}2", folder=Path("/elsewhere")) for m in moved.sources)
    )
    assert changed(moved) == set()


def test_a_quantised_source_has_distributions_of_its_own() -> None:
    base = fusion()
    quantised = replace(base, sources=(replace(base.sources[0], quantization="int8"), base.sources[1]))
    assert changed(quantised) == {"extract", "fuse", "train", "merge"}
    assert quantised.distributions(quantised.sources[1]) == base.distributions(base.sources[1])
    assert quantised.scores(quantised.sources[0]) != base.scores(base.sources[0])


def test_another_weight_of_a_source_changes_its_own_share_only() -> None:
    base = fusion()
    other = replace(base, sources=(base.sources[0], model("b", "cc")))
    assert changed(other) == {"merge"}
    assert other.target((other.sources[1],)) != base.target((base.sources[1],))


def test_a_new_source_leaves_the_others_where_they_are() -> None:
    base = fusion()
    grown = replace(base, sources=(*base.sources, model("c", "cc")))
    assert [grown.target(group) for group in grown.groups[:2]] == [base.target(group) for group in base.groups]
    assert grown.merged() != base.merged()


def test_a_joint_fusion_has_one_target_and_it_is_the_fused_model() -> None:
    joint = fusion(strategy="joint")
    assert joint.groups == (joint.sources,)
    assert joint.merged() == joint.target(joint.sources)


def test_a_merge_of_other_checkpoints_has_an_address_of_its_own() -> None:
    base, linear = fusion(), fusion(merge={"method": "linear"})
    targets = [base.target(group) for group in base.groups]
    control = base.target(base.groups[0], lm_weight=1.0)
    assert base.merge_of(targets) == base.merged()
    assert len({base.merged(), base.merge_of(targets[::-1]), base.merge_of([control, targets[0]])}) == 3
    assert linear.merge_of(targets) != base.merge_of(targets)


def test_reading_the_pivots_template_is_another_extraction_for_sources_but_not_for_the_pivot() -> None:
    own, foreign = fusion(), fusion(extraction={"template": "pivot"})
    assert own.distributions(own.pivot) == foreign.distributions(foreign.pivot)
    assert own.distributions(own.sources[0]) != foreign.distributions(foreign.sources[0])
