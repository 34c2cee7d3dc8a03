from __future__ import annotations

from fusion_core.report.run_summary import MergeSummary
from tasks.runs.page_tables import plan_rows, weight_rows


def test_plan_rows_say_what_is_found_and_what_is_computed() -> None:
    rows = plan_rows({("extract", "maths"): "cached", ("merge", "fused"): "compute"})
    assert rows == [
        {"stage": "extract", "for": "maths", "state": "found in the store"},
        {"stage": "merge", "for": "fused", "state": "will be computed"},
    ]


def test_weights_are_averaged_by_layer_and_layers_are_in_order() -> None:
    merge = MergeSummary(
        method="varm",
        granularity="matrix",
        targets=("a", "b"),
        weights={
            "model.layers.10.mlp.weight": (0.25, 0.75),
            "model.layers.2.mlp.weight": (0.5, 0.5),
            "model.layers.2.attention.weight": (1.0, 0.0),
            "model.embed_tokens.weight": (0.1, 0.9),
        },
    )
    assert weight_rows(merge) == [
        {"part": "outside layers", "a": 0.1, "b": 0.9},
        {"part": "layer 2", "a": 0.75, "b": 0.25},
        {"part": "layer 10", "a": 0.25, "b": 0.75},
    ]
