"""Charts of the report: their colours, their axes, and what is drawn of long or lacking data."""

import re

import numpy as np

from fusion_core.report.charts import loss_chart, merge_weight_charts, weight_grid, weights_outside_layers
from fusion_core.report.radar import radar_charts
from fusion_core.report.run_summary import MergeSummary, TrainingCurve
from tests.fusion_core.run_example import DOMAINS


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
