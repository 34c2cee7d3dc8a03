"""The experiments' figures on made-up scores, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.lab import Entry
from experiments.results import differences, gather, summary
from experiments.run import collect
from experiments.tables import Table
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores

# Two dialogues a domain, responses of 10 and 30 bytes, one label each.
BYTES = {"code": (10, 30), "maths": (10, 30)}


def scores(code: tuple[float, float], maths: tuple[float, float]) -> HeldOutScores:
    dialogues = [
        DialogueScore(dialogue_id=f"{domain}-{size}", domain=domain, response_bytes=(size,), ends=(size,), nats=(nats,))
        for domain, values in {"code": code, "maths": maths}.items()
        for size, nats in zip(BYTES[domain], values, strict=True)
    ]
    return HeldOutScores(model_name="any", max_length_tokens=64, dialogues=tuple(dialogues), refused={})


MADE_UP = {
    ("pivot", None): scores((4.0, 12.0), (8.0, 24.0)),
    ("fused", 0): scores((3.0, 9.0), (8.0, 22.0)),
    ("fused", 1): scores((2.0, 8.0), (8.0, 20.0)),
    ("fused", 2): scores((3.0, 7.0), (6.0, 20.0)),
    ("control", 0): scores((4.0, 10.0), (8.0, 24.0)),
    ("control", 1): scores((4.0, 10.0), (8.0, 23.0)),
}


def test_a_domain_is_all_nats_over_all_bytes_and_the_mean_is_that_of_the_domains() -> None:
    nats = gather(MADE_UP)
    # (4 + 12) / 40 and (8 + 24) / 40, not the means of the dialogues' own ratios.
    assert nats.per_byte(nats.models["pivot"][None]) == pytest.approx({"mean": 0.6, "code": 0.4, "maths": 0.8})


def test_a_difference_to_a_model_without_seeds_has_the_t_interval_over_all_seeds() -> None:
    found = {one.domain: one for one in differences(gather(MADE_UP), "fused", "pivot")}
    # Code: 12, 10, 10 nats of 40 bytes against 16, so -.1, -.15, -.15: mean -.13333, sd .028868, t(.975, 2) = 4.302653.
    code = found["code"].seeds
    half = 4.302653 * 0.028868 / math.sqrt(3)
    assert (code.mean, code.low, code.high) == pytest.approx((-0.13333, -0.13333 - half, -0.13333 + half), abs=1e-4)
    assert found["mean"].seeds.mean == pytest.approx((-0.13333 + found["maths"].seeds.mean) / 2, abs=1e-4)


def test_models_with_seeds_are_compared_seed_by_seed() -> None:
    found = {one.domain: one for one in differences(gather(MADE_UP), "fused", "control")}
    # Seeds 0 and 1 alone have both: code (12 - 14) / 40 and (10 - 14) / 40.
    assert (found["code"].seeds.mean, found["code"].seeds.seeds) == pytest.approx((-0.075, 2))


def test_the_bootstrap_draws_dialogues_within_domains() -> None:
    found = {one.domain: one for one in differences(gather(MADE_UP), "fused", "pivot", resamples=3000)}
    # Means over seeds: code 8/3 and 8 nats against 4 and 12. A draw has both dialogues, or one of them twice: the
    # difference is -4/30, -4/40 - 4/120 or -4/30 each time, so the interval has no width.
    assert (found["code"].low, found["code"].high) == pytest.approx((-4 / 30, -4 / 30))
    # Maths: -2/3 of 10 bytes and -10/3 of 30, so -1/15 and -1/9 at the ends, each a quarter of the draws.
    assert (found["maths"].low, found["maths"].high) == pytest.approx((-1 / 9, -1 / 15))
    assert found["mean"].low == pytest.approx((-4 / 30 - 1 / 9) / 2)


def test_nothing_is_compared_before_both_are_there() -> None:
    nats = gather(
        {key: one for key, one in MADE_UP.items() if key != ("control", 0)} | {("late", 7): scores((1, 1), (1, 1))}
    )
    assert differences(nats, "fused", "late") == []


def test_a_table_keeps_its_order_and_the_run_of_each_score() -> None:
    table = Table(
        "Which?", tuple(Entry(label, label) for label in ("fused", "pivot", "missing")), (("fused", "pivot"),)
    )
    made = {key: one for key, one in MADE_UP.items() if key[0] != "control"}
    results = collect("made-up", table, (0, 1, 2), made, {key: f"run of {key}" for key in made}, "run")
    assert [(row.label, row.seed) for row in results.rows] == [
        ("fused", 0),
        ("fused", 1),
        ("fused", 2),
        ("pivot", None),
    ]
    assert results.rows[1].run == "run of ('fused', 1)"
    assert results.dialogues == {"code": 2, "maths": 2}
    cells = summary(results)
    assert cells["pivot"]["mean"].low is None
    assert cells["fused"]["code"].mean == pytest.approx(np.mean([12, 10, 10]) / 40)
    assert {one.domain for one in results.differences} == {"mean", "code", "maths"}
