"""The report: self-contained, safe against hostile names, deterministic, and showing what the summary holds."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from fusion_core.evaluation.published_scores import published_scores
from fusion_core.evaluation.score_table import Score
from fusion_core.report.best import best_by_column
from fusion_core.report.charts import loss_chart, merge_weight_charts, weight_grid, weights_outside_layers
from fusion_core.report.costs import costs_by_stage
from fusion_core.report.formats import format_bytes, format_count, format_seconds, format_share
from fusion_core.report.headline import headline
from fusion_core.report.html import models_with_own_tokenizer, render_report
from fusion_core.report.radar import radar_charts
from fusion_core.report.run_summary import CoverageRow, MergeSummary, ModelRow, RunSummary, TrainingCurve
from fusion_core.report.terminal import run_result
from tests.fusion_core.run_example import DOMAINS, LEVELS, example_summary

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> $\\alpha$ | {{ 7 * 7 }}"
VOID = {"meta", "br", "img", "rect", "use", "path"}


class Page(HTMLParser):
    """Collects tags, attributes, ids and text, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def summary() -> RunSummary:
    return example_summary()


@pytest.fixture(scope="module")
def page(summary) -> str:
    return render_report(summary)


def test_loads_nothing_and_runs_nothing(page):
    parsed = Page(page)
    assert not parsed.open
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "iframe", "img", "object", "embed"})
    for _, attributes in parsed.tags:
        for name in ("href", "src", "xlink:href", "action"):
            # The colour bar is a small picture within the page.
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    # Namespaces of SVG are names, not addresses that anything fetches.
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_shows_every_part(page, summary):
    text = Page(page).text
    for name in LEVELS:
        assert name in text
    for row in summary.scores.rows:
        for score in (*row.domains.values(), row.overall, row.mean_of_domains):
            assert f"{score.nats_per_byte:.4f}" in text
            if score.difference is not None:
                assert f"{score.difference:+.4f}".replace("-", "−") in text
    for row in summary.coverage:
        assert f"{100 * row.at_boundary / row.positions:.1f}" in text
    for stage in summary.stages:
        assert stage.address in text
    assert "2 of 8 parts were in the store already" in text
    assert "fuseline run deployments/recipes/made-up-example.yaml" in text
    assert "lm_weight: 0.5" in text
    assert "torch" in text and "2.13.0" in text
    assert page.count("<figure>") == 6, "loss curves, a heat map per target, three radar charts"


def test_shows_benchmarks_judges_changes_and_costs(page, summary):
    text = Page(page).text
    assert "exact match, 20 items, 4-shot" in text
    assert "judged by a-judge at localhost" in text
    caption = published_scores().caption
    assert caption in text and "8.22" in text
    assert published_scores().judge in caption
    assert "within noise" in text and "1 missing" in text
    for category in ("writing", "roleplay", "reasoning", "math"):
        assert category in text
    assert "fused is better than smol-8k on 80 held-out dialogues and worse on 40" in text
    assert '<mark class="g3" title="−3.00 nats">two</mark>' in page
    assert '<mark class="l3" title="+3.00 nats">two</mark>' in page
    assert "How much is" in text and "✓" in text and "✗" in text
    (train,) = [cost for cost in costs_by_stage(summary)[0] if cost.stage == "train"]
    assert train.hours == pytest.approx(3 * 148.2 / 3600)
    assert f"{2.5 * train.hours:,.2f}" in text and "EUR" in text
    assert "processor hours" in text


def test_parts_that_a_run_lacks_are_left_out(summary):
    nothing = {"benchmarks": None, "judged": (), "dialogue_changes": None, "answer_changes": None, "price": None}
    text = Page(render_report(summary.model_copy(update=nothing))).text
    for title in ("Benchmarks", "Dialogues gained", "Answers gained", "EUR"):
        assert title not in text
    assert "No price per hour is set" in text


def test_what_was_found_in_the_store_cost_an_earlier_run(summary):
    row = summary.stages[1].model_copy(update={"status": "cached", "seconds": 0.0, "seconds_when_computed": 7200.0})
    rows, whole = costs_by_stage(summary.model_copy(update={"stages": (row.model_copy(update={"devices": 4}),)}))
    assert (whole.hours, whole.hours_when_computed, whole.cached) == (0.0, 8.0, 1)
    assert [cost.stage for cost in rows] == ["extract"]


def test_a_radar_has_its_axes_and_no_line_with_a_gap(summary):
    domain, own, judged = radar_charts(summary)
    for name in DOMAINS:
        assert name in domain.svg
    assert [name for name, *_ in domain.models][:2] == ["fused", "smol-8k"]
    assert "mathematician" not in [name for name, *_ in own.models]
    assert [name for name, *_ in judged.models] == ["fused", "smol-8k"]
    table = summary.judged[0]
    gap = table.rows[1].means | {
        "mt_bench/math": table.rows[1].means["mt_bench/math"].model_copy(update={"mean": None})
    }
    broken = table.model_copy(update={"rows": (table.rows[0], table.rows[1].model_copy(update={"means": gap}))})
    charts = radar_charts(summary.model_copy(update={"judged": (broken,)}))
    assert [name for name, *_ in charts[-1].models] == ["smol-8k"]


def test_the_best_of_each_column_is_bold(page, summary):
    best = best_by_column(summary.scores)
    assert best["mathematics"] == "mathematician"
    assert best["="] == min(summary.scores.rows, key=lambda row: row.mean_of_domains.nats_per_byte).model
    bold = re.findall(r'<span class="best">(\d\.\d{4})</span>', page)
    assert len(bold) == len(DOMAINS) + 2


def test_same_summary_same_bytes(page, summary):
    again = RunSummary.model_validate_json(summary.model_dump_json())
    assert again == summary
    assert render_report(again) == page


def test_ids_do_not_meet(page):
    ids = [attributes["id"] for _, attributes in Page(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_hostile_names_stay_text(summary):
    evil = ModelRow(name=HOSTILE, role="source", origin=HOSTILE, note=HOSTILE, license=HOSTILE, revision=HOSTILE)
    curves = tuple(curve.model_copy(update={"target": HOSTILE}) for curve in summary.curves)
    stages = tuple(row.model_copy(update={"subject": HOSTILE, "address": HOSTILE}) for row in summary.stages)
    coverage = tuple(row.model_copy(update={"source": HOSTILE, "domain": HOSTILE}) for row in summary.coverage)
    rows = tuple(row.model_copy(update={"model": HOSTILE}) for row in summary.scores.rows)
    merge = summary.merge.model_copy(update={"targets": (HOSTILE, "b")})
    merge = merge.model_copy(update={"weights": merge.weights | {HOSTILE: (0.5, 0.5)}})
    page = render_report(
        summary.model_copy(
            update={
                "name": HOSTILE,
                "command": HOSTILE,
                "device": HOSTILE,
                "recipe": {HOSTILE: HOSTILE},
                "models": (evil,),
                "curves": curves,
                "stages": stages,
                "coverage": coverage,
                "scores": summary.scores.model_copy(update={"rows": rows}),
                "merge": merge,
                "versions": {HOSTILE: HOSTILE},
            }
        )
    )
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "<script>alert('x')</script>" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text


def poison(value):
    """Put hostile text before every text of a JSON value, keys included."""
    if isinstance(value, str):
        return HOSTILE + value
    if isinstance(value, dict):
        # Names of fields are ours; keys that name models, metrics and domains are not.
        return {
            HOSTILE + key if "/" in key or key in (*LEVELS, *DOMAINS) else key: poison(v) for key, v in value.items()
        }
    return [poison(item) for item in value] if isinstance(value, list) else value


def test_hostile_dialogues_answers_and_metrics_stay_text(summary):
    parts = ("scores", "benchmarks", "judged", "dialogue_changes", "answer_changes", "price")
    whole = summary.model_dump(mode="json")
    poisoned = whole | {part: poison(whole[part]) for part in parts}
    for model in poisoned["models"]:
        model["name"] = HOSTILE + model["name"]
    hostile = RunSummary.model_validate(poisoned)
    page = render_report(hostile)
    parsed = Page(page)
    assert not parsed.open
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert parsed.text.count("alert('x')") > 50
    # Beside the loss curves the radar charts are the SVG with texts in it.
    assert all(HOSTILE[:8] not in chart.svg for chart in radar_charts(hostile))
    assert len(radar_charts(hostile)) == 3


def test_a_summary_with_nothing_but_a_pivot_renders():
    bare = RunSummary(
        name="bare",
        created="2026-01-02T03:04:05+00:00",
        seconds=1.0,
        recipe={},
        command="fuseline run bare.yaml",
        device="none",
        models=(ModelRow(name="p", role="pivot"),),
    )
    assert not Page(render_report(bare)).open
    assert headline(bare) == []


def test_charts_take_the_pages_colours(summary):
    svg = loss_chart(summary.curves)
    assert "currentColor" in svg and "var(--series-1)" in svg and "var(--rule)" in svg
    assert "#0102" not in svg
    assert "<date" not in svg and "<metadata" not in svg
    assert re.search(r"<svg [^>]*viewBox", svg) and not re.search(r"<svg [^>]*\bwidth=", svg)


def test_long_and_single_step_curves_are_drawn():
    steps = tuple(range(1, 5001))
    curve = TrainingCurve(
        target="t",
        lm_weight=1.0,
        steps=steps,
        lm_loss=(1.0,) * 5000,
        fusion_loss=(None,) * 5000,
        learning_rate=(0.1,) * 5000,
    )
    assert len(loss_chart([curve])) < 120_000
    single = TrainingCurve(
        target="t", lm_weight=1.0, steps=(1,), lm_loss=(1.0,), fusion_loss=(None,), learning_rate=(0.1,)
    )
    assert "<svg" in loss_chart([single])


def test_weights_are_arranged_by_layer_and_matrix():
    merge = MergeSummary(
        method="varm",
        granularity="matrix",
        targets=("a", "b"),
        weights={
            "model.embed_tokens.weight": (0.4, 0.6),
            "model.layers.0.self_attn.q_proj.weight": (0.1, 0.9),
            "model.layers.0.mlp.experts.0.w1.weight": (0.2, 0.8),
            "model.layers.0.mlp.experts.1.w1.weight": (0.4, 0.6),
            "model.layers.10.self_attn.q_proj.weight": (0.3, 0.7),
        },
    )
    layers, matrices, grid = weight_grid(merge)
    assert layers == [0, 10]
    assert matrices == ["self_attn.q_proj", "mlp.experts.*.w1"]
    np.testing.assert_allclose(grid[0], [[0.1, 0.3], [0.3, np.nan]])
    np.testing.assert_allclose(grid[1], [[0.9, 0.7], [0.7, np.nan]])
    assert weights_outside_layers(merge) == {"model.embed_tokens.weight": (0.4, 0.6)}
    assert [target for target, _ in merge_weight_charts(merge)] == ["a", "b"]


def test_own_tokenizers_are_marked(summary, page):
    assert models_with_own_tokenizer(summary) == {"mathematician", "assistant-gpt2"}
    assert page.count("<sup>*</sup>") == 2


def test_headline_gives_the_signed_change(summary):
    scores = summary.scores
    fused, pivot = (scores.row(name).mean_of_domains.nats_per_byte for name in ("fused", "smol-8k"))
    (sentence,) = headline(summary)
    assert f"{100 * (pivot - fused) / pivot:.1f}\N{NO-BREAK SPACE}% less than smol-8k" in sentence
    worse = scores.row("fused").model_copy(update={"mean_of_domains": Score(nats_per_byte=2 * pivot)})
    table = scores.model_copy(update={"rows": (scores.row("smol-8k"), worse)})
    (sentence,) = headline(summary.model_copy(update={"scores": table}))
    assert "100.0\N{NO-BREAK SPACE}% more than smol-8k" in sentence


def test_the_terminal_shows_the_table(summary):
    console = Console(width=140, record=True, color_system=None)
    console.print(run_result(summary))
    text = console.export_text()
    for row in summary.scores.rows:
        assert row.model in text
        assert f"{row.overall.nats_per_byte:.4f}" in text
    assert "A specialist of mathematics" in text
    for line in headline(summary):
        assert line.split(":")[0] in text


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (
            TrainingCurve,
            {
                "target": "t",
                "lm_weight": 1,
                "steps": (1, 2),
                "lm_loss": (1,),
                "fusion_loss": (1,),
                "learning_rate": (1,),
            },
        ),
        (MergeSummary, {"method": "varm", "granularity": "matrix", "targets": ("a", "b"), "weights": {"x": (1.0,)}}),
        (
            CoverageRow,
            {
                "source": "s",
                "domain": "d",
                "positions": 10,
                "at_boundary": 5,
                "conditioned": 1,
                "fallen_back": 1,
                "mass_kept": 1,
                "source_won": 0,
            },
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(record, fields):
    with pytest.raises(ValidationError):
        record(**fields)


def test_numbers_read_well():
    assert format_count(999_999) == "999,999"
    assert format_count(1_230_000) == "1.23 M"
    assert format_count(4.567e13) == "45.7 T"
    assert (format_count(5, "FLOPs"), format_count(5e12, "FLOPs")) == ("5 FLOPs", "5.00 TFLOPs")
    assert format_bytes(999) == "999 B"
    assert format_bytes(1.5e9) == "1.50 GB"
    assert [format_seconds(value) for value in (0.05, 3.21, 75, 702, 3 * 3600 + 120, 9e6)] == [
        "50 ms",
        "3.2 s",
        "75 s",
        "11 min 42 s",
        "3 h 02 min",
        "104.2 days",
    ]
    assert format_share(1, 3) == "33.3 %"
    assert format_share(0, 0) == "–"
