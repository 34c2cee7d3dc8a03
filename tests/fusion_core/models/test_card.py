"""The model card: front matter that the hub reads, every source named, hostile text kept as text."""

import yaml

from fusion_core.models.card import model_card, read_license, weights_by_matrix
from fusion_core.report.run_summary import MergeSummary, ModelRow
from tests.fusion_core.run_example import LEVELS, example_summary


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card[4:].split("\n---\n", 1)[0])


def test_front_matter_names_hub_models_and_claims_no_licence_it_does_not_know():
    matter = front_matter(model_card(example_summary()))
    assert matter["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert matter["license"] == "unknown"
    assert "merge" in matter["tags"]


def test_a_licence_that_all_models_share_is_claimed():
    summary = example_summary()
    models = tuple(model.model_copy(update={"license": "apache-2.0"}) for model in summary.models)
    assert front_matter(model_card(summary.model_copy(update={"models": models})))["license"] == "apache-2.0"


def test_the_card_tells_sources_data_method_scores_and_recipe():
    summary = example_summary()
    card = model_card(summary)
    for name in LEVELS:
        assert name in card
    for row in summary.scores.rows:
        assert f"{row.mean_of_domains.nats_per_byte:.4f}" in card
    assert "VaRM" in card and "λ = 0.5" in card
    assert "code.jsonl" in card
    block = card.split("with this recipe", 1)[1].split("\n\n", 1)[1].split("\n\n", 1)[0]
    assert yaml.safe_load(block) == summary.recipe
    assert card == model_card(summary)


def test_hostile_notes_stay_text():
    summary = example_summary()
    note = "x | y\n\n# Title\n<script>alert(1)</script> [link](javascript:alert(1)) `code`"
    evil = ModelRow(name="evil", role="source", note=note, origin="---\nlicense: mit\n---", revision="r")
    card = model_card(summary.model_copy(update={"models": (*summary.models, evil), "recipe": {"note": "```\n# x"}}))
    (line,) = (line for line in card.splitlines() if line.startswith("| evil |"))
    assert "<script>" not in card
    assert "\\[link\\]" in line and "\\# Title" in line and "x \\| y" in line
    assert "\n# Title" not in card
    assert front_matter(card)["license"] == "unknown"


def test_weights_are_summarised_over_layers():
    merge = MergeSummary(
        method="varm",
        granularity="matrix",
        targets=("a", "b"),
        weights={"m.layers.0.q.weight": (0.2, 0.8), "m.layers.1.q.weight": (0.4, 0.6), "m.norm.weight": (0.5, 0.5)},
    )
    ((mean, low, high), (other, _, _)) = weights_by_matrix(merge)["q"]
    assert (round(mean, 6), low, high, round(other, 6)) == (0.3, 0.2, 0.4, 0.7)


def test_a_joint_run_without_scores_has_a_card():
    summary = example_summary().model_copy(update={"merge": None, "scores": None, "curves": (), "data": ()})
    assert "## Scores" not in model_card(summary)


def test_licence_is_read_from_a_folders_front_matter(tmp_path):
    assert read_license(tmp_path) is None
    readme = tmp_path / "README.md"
    readme.write_text("# no front matter")
    assert read_license(tmp_path) is None
    readme.write_text("---\nlicense: mit\ntags: [a]\n---\n# x")
    assert read_license(tmp_path) == "mit"
    readme.write_text("---\n: : [\n---\n")
    assert read_license(tmp_path) is None
