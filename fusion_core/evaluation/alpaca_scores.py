"""From AlpacaEval's annotations to win rates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_core.evaluation.alpaca_eval import AlpacaEval
from fusion_core.evaluation.bootstrap import FEWEST_FOR_INTERVAL, percentile_interval
from fusion_core.evaluation.judged_means import JudgedAnswer, JudgedMeans
from fusion_core.evaluation.judged_scores import Judge, JudgeCosts, JudgedMean, JudgedScores, JudgedTable
from fusion_core.evaluation.length_control import GamedBaseline, length_controlled_win_rate, read_gamed_baseline

NAME = "alpaca_eval"
REFITS = 200

Row = Mapping[str, Any]


def score_annotations(
    benchmark: AlpacaEval,
    rows: Mapping[str, Sequence[Row]],
    judge: Judge,
    *,
    unfinished: Mapping[str, int] | None = None,
    costs: JudgeCosts | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> JudgedTable:
    """Score models by the annotations of their outputs, in percent.

    ``alpaca_eval/win_rate`` is the mean preference. ``alpaca_eval/length_controlled_win_rate`` is there where
    ``df_gamed.csv`` is; without it, it cannot be told as alpaca_eval does.
    """
    gamed = read_gamed_baseline(benchmark.gamed) if benchmark.gamed is not None else None
    scored = []
    for model, judged in rows.items():
        answers = [
            JudgedAnswer(
                int(row["index"]),
                "all",
                1,
                () if row["preference"] is None else (100.0 * (row["preference"] - 1.0),),
                int(row["preference"] is None),
            )
            for row in judged
        ]
        means = {f"{NAME}/win_rate": JudgedMeans({model: answers}, resamples=resamples, seed=seed).mean(model)}
        if gamed is not None:
            means[f"{NAME}/length_controlled_win_rate"] = _length_controlled(judged, gamed, seed)
        scored.append(JudgedScores(model=model, means=means, unfinished_answers=(unfinished or {}).get(model, 0)))
    return JudgedTable(
        benchmark=NAME,
        benchmark_digest=benchmark.digest,
        questions=len(benchmark.instructions),
        judge=judge,
        baseline=benchmark.baseline,
        rows=tuple(scored),
        costs=costs or JudgeCosts(),
        resamples=resamples,
    )


def _length_controlled(rows: Sequence[Row], gamed: GamedBaseline, seed: int) -> JudgedMean:
    judged = [row for row in rows if row["preference"] is not None]
    missing = len(rows) - len(judged)
    if not judged:
        return JudgedMean(mean=None, n=0, missing=missing)
    value, draws = length_controlled_win_rate(
        np.array([row["preference"] - 1.0 for row in judged]),
        np.array([float(len(row["output_1"]) - len(row["output_2"])) for row in judged]),
        [int(row["index"]) for row in judged],
        gamed,
        resamples=REFITS if len(judged) >= FEWEST_FOR_INTERVAL else 0,
        seed=seed,
    )
    low, high = percentile_interval(draws) if len(draws) else (None, None)
    return JudgedMean(mean=value, low=low, high=high, n=len(judged), missing=missing)
