"""Paired bootstrap over dialogues.

Legend: D dialogues, M models, R resamples, S strata (domains).
"""

from __future__ import annotations

import numpy as np

from fusion_core.errors import EvaluationError

RESAMPLES_AT_ONCE = 256
# Share of the draws that an interval holds where nobody asks for another.
CONFIDENCE = 0.95
# Below this many dialogues, items or questions a percentile interval is far too narrow to be shown.
FEWEST_FOR_INTERVAL = 5


def resampled_sums(values_DM: np.ndarray, strata_D: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sum columns over dialogues drawn with replacement, each stratum as often as it has dialogues.

    One draw serves all columns, so differences and ratios of columns are paired: what makes one dialogue harder than
    another for every model cancels.

    Parameters
    ----------
    values_DM : float64 [D, M]
        What is summed, such as the nats of each model on each dialogue.
    strata_D : int64 [D]
        Stratum of each dialogue, 0 to S - 1; each stratum has at least one.
    resamples : int
        Number of draws R.
    seed : int
        Equal seeds give equal draws.

    Returns
    -------
    float64 [R, S, M]

    Raises
    ------
    EvaluationError
        If there are no dialogues.

    Notes
    -----
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    if len(values_DM) == 0:
        raise EvaluationError("There is no dialogue to draw from; score at least one held-out dialogue.")
    generator = np.random.default_rng(seed)
    strata = int(strata_D.max()) + 1
    sums_RSM = np.empty((resamples, strata, values_DM.shape[1]))
    for stratum in range(strata):
        members_DM = values_DM[strata_D == stratum]
        even = np.full(len(members_DM), 1.0 / len(members_DM))
        for start in range(0, resamples, RESAMPLES_AT_ONCE):
            stop = min(start + RESAMPLES_AT_ONCE, resamples)
            counts_RD = generator.multinomial(len(members_DM), even, size=stop - start)
            sums_RSM[start:stop, stratum] = counts_RD @ members_DM
    return sums_RSM


def percentile_interval(draws_R: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the central interval that holds this share of the draws (the percentile bootstrap).

    Parameters
    ----------
    draws_R : float64 [R]
    confidence : float
        Share between 0 and 1.
    """
    outside = (1.0 - confidence) / 2
    low, high = np.quantile(draws_R, [outside, 1.0 - outside])
    return float(low), float(high)
