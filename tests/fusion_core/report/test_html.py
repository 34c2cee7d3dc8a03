"""The report: self-contained, safe against hostile names, deterministic, and showing what the summary holds."""

import re
from html.parser import HTMLParser

import pytest

from fusion_core.evaluation.judged_scores import JudgedMean, JudgedScores
from fusion_core.evaluation.published_scores import published_scores
from fusion_core.report.best import best_by_column
from fusion_core.report.costs import costs_by_stage
from fusion_core.report.headline import headline
from fusion_core.report.html import judged_best, models_with_own_tokenizer, render_report
from fusion_core.report.radar import radar_charts
from fusion_core.report.run_summary import ModelRow, RunSummary
from tests.fusion_core.run_example import DOMAINS, LEVELS

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


def test_the_best_judged_model_wins_most_and_loses_least(summary):
    rates = {
        "steady": {"wins": 40.0, "ties": 50.0, "losses": 10.0},
        "bold": {"wins": 50.0, "ties": 10.0, "losses": 40.0},
    }
    rows = tuple(
        JudgedScores(
            model=model, means={f"mt_bench_pairwise/{part}": JudgedMean(mean=rate, n=8) for part, rate in found.items()}
        )
        for model, found in rates.items()
    )
    table = summary.judged[0].model_copy(update={"benchmark": "mt_bench_pairwise", "rows": rows})
    best = {part: judged_best(table, f"mt_bench_pairwise/{part}") for part in ("wins", "ties", "losses")}
    assert best == {"wins": "bold", "ties": None, "losses": "steady"}
    page = render_report(summary.model_copy(update={"judged": (table,)}))
    assert '<span class="best">10.00</span>' in page and '<span class="best">40.00</span>' not in page


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


def test_own_tokenizers_are_marked(summary, page):
    assert models_with_own_tokenizer(summary) == {"mathematician", "assistant-gpt2"}
    assert page.count("<sup>*</sup>") == 2
