"""AlpacaEval's length-controlled win rate: what the win rate would be if both answers were of one length.

The regression ``length_controlled_v1`` of Dubois et al. (2024, arXiv 2404.04475, section 3):

    P(the model is preferred) = sigmoid(a tanh(z) + b difficulty + c ours)

with z the baseline's length in characters minus the model's, over the standard deviation of that difference,
``difficulty`` a number for each instruction, and ``ours`` 1 on the model's own comparisons. The comparisons of the
baseline with its own concise and verbose selves are rows too, of weight 0.1, so that length has an effect of its own.
The coefficients minimise |a| + |b| + |c| + C sum(weight * log loss), with the C of ten that is best in five-fold
cross-validation. The win rate is predicted at z = 0. Two things are not as in alpaca_eval's own program: the folds are
dealt out in turn, and the solver is another, which finds the same minimum.

Legend: I instructions judged, G rows of the gamed baselines, F = 3 features.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from fusion_core.errors import EvaluationError, first_line

GAMED_WEIGHT = 0.2 / 2
STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5
LEAST_PROBABILITY = 1e-15


@dataclass(frozen=True)
class GamedBaseline:
    """Rows of ``df_gamed.csv``: features [G, F], preferences [G], and each instruction's difficulty by its index."""

    features: np.ndarray
    preferences: np.ndarray
    difficulty: dict[int, float]


def read_gamed_baseline(path: Path) -> GamedBaseline:
    """Read alpaca_eval's ``df_gamed.csv`` (of the hub dataset tatsu-lab/alpaca_eval).

    Raises
    ------
    EvaluationError
        If a column is missing or no number.
    """
    features, preferences = [], []
    difficulty: dict[int, float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                hard = float(row["instruction_difficulty"])
                difficulty.setdefault(int(float(row["index"])), hard)
                if row["preference"]:
                    features.append([np.tanh(float(row["std_delta_len"])), hard, 0.0])
                    preferences.append(float(row["preference"]))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EvaluationError(
            f"AlpacaEval: {path} is not alpaca_eval's df_gamed.csv ({first_line(error)}); take it from the hub "
            "dataset tatsu-lab/alpaca_eval, or remove it and do without length control."
        ) from error
    return GamedBaseline(np.array(features), np.array(preferences), difficulty)


def length_controlled_win_rate(
    preferences_I: np.ndarray,
    length_differences_I: np.ndarray,
    indices: Sequence[int],
    gamed: GamedBaseline,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """Return the length-controlled win rate in percent, and draws of it over resampled instructions.

    Parameters
    ----------
    preferences_I : float64 [I]
        1 where the model is preferred, 0 where the baseline is.
    length_differences_I : float64 [I]
        Characters of the baseline's answer minus those of the model's.
    indices : sequence of int
        Each instruction's place in the whole set.
    gamed : GamedBaseline
    resamples, seed : int
        Draws; each fits the coefficients anew with the C that was chosen once.

    Raises
    ------
    EvaluationError
        If an instruction's difficulty is not known.
    """
    unknown = [index for index in indices if index not in gamed.difficulty]
    if unknown:
        raise EvaluationError(f"AlpacaEval: the difficulty of instruction {unknown[0]} is not known; use its own 805.")
    difficulty_I = np.array([gamed.difficulty[index] for index in indices])
    spread = float(np.std(length_differences_I, ddof=1)) if len(indices) > 1 else 0.0
    z_I = length_differences_I / spread if spread else np.zeros(len(indices))
    features_IF = np.column_stack([np.tanh(z_I), difficulty_I, np.ones(len(indices))])
    features, targets, weights = _with_gamed(features_IF, preferences_I, gamed)
    strength = _choose_strength(features, targets, weights)

    def win_rate(rows_I: np.ndarray) -> float:
        fitted_F = fit(*_with_gamed(features_IF[rows_I], preferences_I[rows_I], gamed), strength)
        return float(100.0 * expit(features_IF[rows_I][:, 1:] @ fitted_F[1:]).mean())

    draw = np.random.default_rng(seed)
    everything = np.arange(len(indices))
    draws = [win_rate(draw.choice(everything, len(everything))) for _ in range(resamples)]
    return win_rate(everything), np.array(draws)


def fit(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """Minimise the L1 norm of the coefficients plus ``strength`` times the weighted log loss; returns them [F]."""
    count = features.shape[1]

    def objective(halves: np.ndarray) -> tuple[float, np.ndarray]:
        # Positive and negative parts apart, the L1 norm is their sum, and smooth.
        logits = features @ (halves[:count] - halves[count:])
        loss = weights @ (np.logaddexp(0.0, logits) - targets * logits)
        gradient = strength * (features.T @ (weights * (expit(logits) - targets)))
        return float(halves.sum() + strength * loss), np.concatenate([1.0 + gradient, 1.0 - gradient])

    found = minimize(
        objective,
        np.full(2 * count, 0.1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * (2 * count),
        options={"ftol": 1e-12, "gtol": 1e-8, "maxiter": 2000},
    )
    return found.x[:count] - found.x[count:]


def _with_gamed(
    features_IF: np.ndarray, preferences_I: np.ndarray, gamed: GamedBaseline
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weights = np.concatenate([np.full(len(gamed.preferences), GAMED_WEIGHT), np.ones(len(preferences_I))])
    if not len(gamed.preferences):
        return features_IF, preferences_I, weights
    return (
        np.concatenate([gamed.features, features_IF]),
        np.concatenate([gamed.preferences, preferences_I]),
        weights,
    )


def _choose_strength(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    fold = np.arange(len(targets)) % FOLDS
    scores = []
    for strength in STRENGTHS:
        losses = []
        for held_out in range(FOLDS):
            inside, outside = fold != held_out, fold == held_out
            fitted_F = fit(features[inside], targets[inside], weights[inside], strength)
            predicted = np.clip(expit(features[outside] @ fitted_F), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
            truth = targets[outside]
            losses.append(-np.mean(weights[outside] * (truth * np.log(predicted) + (1 - truth) * np.log1p(-predicted))))
        scores.append(np.mean(losses))
    return float(STRENGTHS[int(np.argmin(scores))])
