"""Promotion gates against cases worked by hand and against a bootstrap written out."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fusion_core.config import FusionConfig, MustBeat, MustNotDrop, PromotionConfig
from fusion_core.evaluation.decision import Contender, Measure
from fusion_core.evaluation.gates import decide
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores
from fusion_core.evaluation.judged_scores import Judge, JudgedMean, JudgedScores, JudgedTable

BYTES = 100


def contender(name: str, nats: dict[str, list[float]], **measures: Measure) -> Contender:
    """Give each dialogue one label that covers its 100 bytes at so many nats."""
    dialogues = tuple(
        DialogueScore(
            dialogue_id=f"{domain}-{number}", domain=domain, response_bytes=(BYTES,), ends=(BYTES,), nats=(value,)
        )
        for domain, values in nats.items()
        for number, value in enumerate(values)
    )
    scores = HeldOutScores(model_name=name, max_length_tokens=64, dialogues=dialogues, refused={})
    return Contender(name=name, held_out=scores, measures={key.replace("__", "/"): m for key, m in measures.items()})


def beat(**settings: object) -> PromotionConfig:
    return PromotionConfig(must_beat=(MustBeat(**settings),))


SAME = {"code": [50.0] * 6, "talk": [80.0] * 6}
BETTER = {"code": [40.0] * 6, "talk": [70.0] * 6}


def test_equal_gains_on_every_dialogue_have_an_interval_of_no_width() -> None:
    decision = decide(beat(), contender("new", BETTER), {"champion": contender("old", SAME)})
    (gate,) = decision.gates
    assert decision.passed and gate.dialogues == 12
    assert (gate.candidate, gate.other) == (pytest.approx(0.55), pytest.approx(0.65))
    assert gate.gain == pytest.approx(0.1) and gate.low == pytest.approx(0.1) and gate.high == pytest.approx(0.1)


@pytest.mark.parametrize(("margin", "passed"), [(0.09, True), (0.11, False)])
def test_margin_is_in_the_metrics_unit(margin: float, passed: bool) -> None:
    decision = decide(beat(margin=margin), contender("new", BETTER), {"champion": contender("old", SAME)})
    assert decision.passed is passed
    assert (("beats" if passed else "does not beat") in decision.gates[0].reason) and "old" in decision.gates[0].reason


def test_a_model_does_not_beat_itself() -> None:
    same = contender("old", SAME)
    for confidence in (0.95, None):
        assert not decide(beat(confidence=confidence), contender("new", SAME), {"champion": same}).passed


def test_confidence_decides_where_dialogues_disagree() -> None:
    gains = np.array([30, -10, 20, -15, 12, 9, 14, -6, 25, -12], dtype=float)
    new = contender("new", {"code": list(100 - gains)})
    old = contender("old", {"code": [100.0] * 10})
    sure = decide(beat(confidence=0.95), new, {"champion": old}).gates[0]
    unsure = decide(beat(confidence=0.5), new, {"champion": old}).gates[0]
    assert not sure.passed and unsure.passed
    # The same draws, written out.
    counts = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=(256,))
    draws = counts @ gains / 10 / BYTES
    assert sure.gain == pytest.approx(gains.mean() / BYTES)
    assert sure.low == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert sure.low < unsure.low < unsure.high < sure.high


def test_without_a_champion_the_pivot_stands_in() -> None:
    decision = decide(beat(), contender("new", BETTER), {"pivot": contender("pivot small", SAME)})
    assert decision.passed and decision.champion is None and decision.gates[0].rival == "pivot small"


def test_a_rival_that_is_not_there_fails_its_gate() -> None:
    decision = decide(beat(rival="plain_sft"), contender("new", BETTER), {"pivot": contender("pivot", SAME)})
    assert not decision.passed and "there is no plain_sft" in decision.reason


def test_each_domain_may_drop_only_so_far() -> None:
    new = contender("new", {"code": [40.0] * 6, "talk": [83.0] * 6})
    config = PromotionConfig(must_beat=(), must_not_drop_more_than=(MustNotDrop(limit=0.02),))
    decision = decide(config, new, {"champion": contender("old", SAME)})
    assert [(gate.metric, gate.passed) for gate in decision.gates] == [
        ("nats_per_byte/code", True),
        ("nats_per_byte/talk", False),
    ]
    assert decision.gates[1].gain == pytest.approx(-0.03)
    wide = PromotionConfig(must_beat=(), must_not_drop_more_than=(MustNotDrop(limit=0.04),))
    assert decide(wide, new, {"champion": contender("old", SAME)}).passed


def test_only_dialogues_that_both_were_scored_on_count() -> None:
    old = contender("old", {"code": [50.0] * 6 + [1.0] * 4})
    gate = decide(beat(), contender("new", {"code": [40.0] * 6}), {"champion": old}).gates[0]
    assert gate.dialogues == 6 and gate.other == pytest.approx(0.5)
    apart = decide(beat(), contender("new", {"code": [1.0] * 6}), {"champion": contender("old", {"talk": [2.0] * 6})})
    assert not apart.passed and "share no held-out dialogues" in apart.reason


def test_too_few_dialogues_are_no_proof() -> None:
    new, old = contender("new", {"code": [1.0] * 4}), contender("old", {"code": [2.0] * 4})
    assert "confidence: null" in decide(beat(), new, {"champion": old}).reason
    assert decide(beat(confidence=None), new, {"champion": old}).passed


def test_means_alone_are_shown_without_an_interval() -> None:
    new, old = contender("new", {"code": [1.0] * 6}), contender("old", {"code": [2.0] * 6})
    decision = decide(beat(confidence=None), new, {"champion": old})
    assert decision.passed and decision.gates[0].low is None
    assert "+0.0100 |  | > 0 |" in decision.markdown()


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_passes_no_gate(mean: float) -> None:
    new, old = (Contender(name="new", measures={"x/y": Measure(mean=m)}) for m in (mean, 1.0))
    config = PromotionConfig(must_beat=(MustBeat(metric="x/y", confidence=None),), required=("x",))
    assert [gate.passed for gate in decide(config, new, {"champion": old}).gates] == [False, False]
    assert not decide(beat(metric="x/y", confidence=None), old, {"champion": new}).passed


def test_judged_scores_compare_by_their_intervals() -> None:
    def judged(name: str, mean: float, half: float, scale: str = "judge") -> Contender:
        return Contender(
            name=name, measures={"mt_bench/overall": Measure(mean=mean, low=mean - half, high=mean + half, scale=scale)}
        )

    config = beat(metric="mt_bench/overall")
    gate = decide(config, judged("new", 7.0, 0.3), {"champion": judged("old", 6.4, 0.4)}).gates[0]
    # 3-4-5: the halves add up to 0.5 as the sides of a right triangle do.
    assert gate.passed and gate.low == pytest.approx(0.1) and gate.high == pytest.approx(1.1)
    assert not decide(config, judged("new", 7.0, 0.3), {"champion": judged("old", 6.6, 0.4)}).passed
    other = decide(config, judged("new", 9.0, 0.1, "another"), {"champion": judged("old", 6.0, 0.1)})
    assert not other.passed and "in different ways" in other.reason


def test_where_less_is_better_a_lower_score_beats() -> None:
    config = beat(metric="perplexity", confidence=None)
    new, old = (
        Contender(name=n, measures={"perplexity": Measure(mean=m, higher_is_better=False)})
        for n, m in (("new", 5.0), ("old", 6.0))
    )
    assert decide(config, new, {"champion": old}).gates[0].gain == 1.0
    assert not decide(config, old, {"champion": new}).passed


def compared(name: str, *, wins: float, ties: float, losses: float) -> Contender:
    """A model with its comparisons with the pivot, in percent."""
    rates = {"win_rate": wins + ties / 2, "wins": wins, "ties": ties, "losses": losses, "writing": 50.0}
    row = JudgedScores(
        model=name, means={f"mt_bench_pairwise/{part}": JudgedMean(mean=rate, n=8) for part, rate in rates.items()}
    )
    judge = Judge(model="j", endpoint="h")
    table = JudgedTable(
        benchmark="mt_bench_pairwise",
        benchmark_digest="d",
        questions=4,
        judge=judge,
        baseline="p",
        rows=(row,),
        resamples=1,
    )
    return Contender(name=name, measures=table.measures(name))


def test_fewer_lost_pairs_are_better_and_ties_are_neither() -> None:
    new = compared("new", wins=50.0, ties=40.0, losses=10.0)
    old = compared("old", wins=40.0, ties=20.0, losses=40.0)
    losses = beat(metric="mt_bench_pairwise/losses", confidence=None)
    (gate,) = decide(losses, new, {"champion": old}).gates
    assert gate.passed and gate.gain == 30.0
    assert not decide(losses, old, {"champion": new}).passed
    ties = decide(beat(metric="mt_bench_pairwise/ties", confidence=None), new, {"champion": old})
    assert not ties.passed and "neither better nor worse" in ties.reason


def test_only_categories_are_parts_of_a_pairwise_comparison() -> None:
    drop = MustNotDrop(metric="mt_bench_pairwise", limit=5.0)
    new = compared("new", wins=30.0, ties=70.0, losses=0.0)
    old = compared("old", wins=40.0, ties=20.0, losses=40.0)
    decision = decide(PromotionConfig(must_beat=(), must_not_drop_more_than=(drop,)), new, {"champion": old})
    assert [(gate.metric, gate.passed) for gate in decision.gates] == [("mt_bench_pairwise/writing", True)]


def test_the_table_shows_every_number() -> None:
    decision = decide(beat(margin=0.01), contender("version 2", BETTER), {"champion": contender("version 1", SAME)})
    cells = "| version 1 | 0.5500 | 0.6500 | +0.1000 | +0.1000 to +0.1000 (95%) | > 0.01 |"
    assert f"| passed | must beat | nats_per_byte {cells}" in decision.markdown()


def test_categories_that_only_one_has_are_not_passed() -> None:
    config = PromotionConfig(must_beat=(), must_not_drop_more_than=(MustNotDrop(metric="mt_bench", limit=0.5),))
    new = Contender(name="new", measures={"mt_bench/overall": Measure(mean=1), "mt_bench/maths": Measure(mean=6.6)})
    old = Contender(name="old", measures={"mt_bench/maths": Measure(mean=7), "mt_bench/roleplay": Measure(mean=7)})
    decision = decide(config, new, {"champion": old})
    assert [(gate.metric, gate.passed) for gate in decision.gates] == [
        ("mt_bench/maths", True),
        ("mt_bench/roleplay", False),
    ]


def test_required_metrics_may_be_families() -> None:
    config = PromotionConfig(must_beat=(), required=("nats_per_byte", "mt_bench", "arena"))
    new = contender("new", SAME, mt_bench__overall=Measure(mean=5))
    decision = decide(config, new, {})
    assert [gate.passed for gate in decision.gates] == [True, True, False]
    assert decision.reason == "new was not scored on arena; evaluate it first"


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="approval_timeout_hours"):
        PromotionConfig(approval_timeout_hours=2)
    with pytest.raises(ValidationError, match="plain_sft_control"):
        FusionConfig.model_validate(
            {
                "name": "x",
                "pivot": {"name": "p", "path": "p"},
                "sources": [{"name": "s", "path": "s"}],
                "dialogues": {"files": [{"path": "d.jsonl"}]},
                "evaluation": {"plain_sft_control": False},
                "promotion": {"must_beat": [{"rival": "plain_sft"}]},
            }
        )
