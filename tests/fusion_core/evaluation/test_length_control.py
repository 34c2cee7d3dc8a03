"""The length-controlled win rate against alpaca_eval's own regression, written with scikit-learn as it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.length_control import (
    GAMED_WEIGHT,
    GamedBaseline,
    fit,
    length_controlled_win_rate,
    read_gamed_baseline,
)


def made_up(count: int = 300, length_effect: float = -1.0, skill: float = 0.3):
    """Comparisons that follow the model exactly, up to a draw: preferences, length differences, gamed rows."""
    draw = np.random.default_rng(5)
    difficulty = {index: float(value) for index, value in enumerate(draw.normal(0, 1, count))}
    hard = np.array(list(difficulty.values()))
    differences = draw.normal(-200, 400, count)
    z = differences / differences.std(ddof=1)
    preferences = expit(length_effect * np.tanh(z) + 0.5 * hard + skill)
    gamed_z = np.concatenate([draw.normal(-1, 0.3, count), draw.normal(1, 0.3, count)])
    features = np.column_stack([np.tanh(gamed_z), np.tile(hard, 2), np.zeros(2 * count)])
    gamed = GamedBaseline(features, expit(features @ [length_effect, 0.0, 0.0]), difficulty)
    return preferences, differences, gamed


def test_coefficients_are_those_of_alpaca_evals_regression() -> None:
    """Rows doubled with labels 1 and 0, weighted by their probability: liblinear with the L1 penalty."""
    linear = pytest.importorskip("sklearn.linear_model")
    preferences, differences, gamed = made_up()
    z = differences / differences.std(ddof=1)
    own = np.column_stack([np.tanh(z), list(gamed.difficulty.values()), np.ones(len(z))])
    features = np.concatenate([gamed.features, own])
    targets = np.concatenate([gamed.preferences, preferences])
    weights = np.concatenate([np.full(len(gamed.preferences), GAMED_WEIGHT), np.ones(len(preferences))])
    for strength in (0.05, 1.0, 100.0):
        theirs = linear.LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-8, max_iter=10_000, random_state=1
        )
        theirs.fit(
            np.concatenate([features, features]),
            np.concatenate([np.ones(len(targets)), np.zeros(len(targets))]),
            sample_weight=np.concatenate([targets * weights, (1 - targets) * weights]),
        )
        assert fit(features, targets, weights, strength) == pytest.approx(theirs.coef_[0], abs=2e-3)


def test_length_is_taken_out() -> None:
    """Long answers win by their length alone: raw they do far better than one would at equal length."""
    preferences, differences, gamed = made_up(length_effect=-1.5, skill=0.0)
    raw = 100 * preferences.mean()
    controlled, draws = length_controlled_win_rate(preferences, differences, range(300), gamed, resamples=30)
    fair = 100 * expit(0.5 * np.array(list(gamed.difficulty.values()))).mean()
    assert raw > fair + 7 and controlled == pytest.approx(fair, abs=1.0)
    assert len(draws) == 30 and draws.std() < 3 and draws.min() < controlled < draws.max()


def test_the_baseline_against_itself_is_half() -> None:
    gamed = GamedBaseline(np.zeros((0, 3)), np.zeros(0), dict.fromkeys(range(20), 1.0))
    value, _ = length_controlled_win_rate(np.full(20, 0.5), np.zeros(20), range(20), gamed, resamples=0)
    assert value == pytest.approx(50.0)


def test_the_file_of_alpaca_eval_is_read(tmp_path: Path) -> None:
    path = tmp_path / "df_gamed.csv"
    path.write_text(
        "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model\n"
        "0.9,0,-1.5,0.25,False,concise\n,1,0.5,-0.5,False,concise\n0.2,0,1.5,0.25,False,verbose\n"
    )
    gamed = read_gamed_baseline(path)
    assert gamed.difficulty == {0: 0.25, 1: -0.5}
    assert gamed.preferences.tolist() == [0.9, 0.2]
    assert gamed.features[0].tolist() == pytest.approx([np.tanh(-1.5), 0.25, 0.0])
    path.write_text("preference,index\n1,2\n")
    with pytest.raises(EvaluationError, match=r"df_gamed\.csv"):
        read_gamed_baseline(path)


def test_an_instruction_of_unknown_difficulty_is_named() -> None:
    preferences, differences, gamed = made_up(20)
    with pytest.raises(EvaluationError, match="instruction 20 is not known"):
        length_controlled_win_rate(preferences, differences, range(1, 21), gamed)
