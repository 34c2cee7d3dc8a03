"""From judgments to scores per category, turn and overall, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusion_core.evaluation.judged_means import JudgedAnswer, JudgedMeans, Part
from fusion_core.evaluation.judged_scores import Judge, JudgeCosts, JudgedScores, JudgedTable
from fusion_core.evaluation.mt_bench.data import MtBench
from fusion_core.evaluation.mt_bench.pairwise import final_winner
from fusion_core.evaluation.mt_bench.single import rating_of

Row = Mapping[str, Any]
SINGLE, PAIRWISE = "mt_bench", "mt_bench_pairwise"


def score_ratings(
    benchmark: MtBench,
    rows: Mapping[str, Sequence[Row]],
    judge: Judge,
    baseline: str,
    *,
    unfinished: Mapping[str, int] | None = None,
    costs: JudgeCosts | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> JudgedTable:
    """Score models by their ratings, and against the baseline.

    An answer with several judgments counts with their mean; overall is the mean over all answers of both turns, as in
    FastChat's ``show_result``. What has no rating is left out of the means and counted as missing.

    Parameters
    ----------
    benchmark : MtBench
    rows : mapping from model name to judgments
        As ``judge_answers`` returns or FastChat writes them.
    judge : Judge
    baseline : str
        One of the models.
    unfinished : mapping, optional
        Answers of each model that were cut off.
    costs : JudgeCosts, optional
    resamples, seed : int
        Of the bootstrap.
    """
    answers = {model: _answers(benchmark, judged, rating_of, judge.judgments) for model, judged in rows.items()}
    means = JudgedMeans(answers, resamples=resamples, seed=seed)
    parts = _parts(benchmark, SINGLE)
    scored = tuple(
        JudgedScores(
            model=model,
            means={name: means.mean(model, part) for name, part in parts.items()},
            differences={}
            if model == baseline
            else {name: means.difference(model, baseline, part) for name, part in parts.items()},
            unfinished_answers=(unfinished or {}).get(model, 0),
        )
        for model in rows
    )
    return _table(SINGLE, benchmark, judge, baseline, scored, costs, resamples)


def score_pairs(
    benchmark: MtBench,
    rows: Mapping[str, Sequence[Row]],
    judge: Judge,
    baseline: str,
    *,
    costs: JudgeCosts | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> JudgedTable:
    """Score models by their comparisons with the baseline, in percent.

    ``win_rate`` counts a tie as half a win (FastChat's ``win_rate_adjusted``); ``wins``, ``ties`` and ``losses`` are
    shares. A comparison without a verdict in either order is missing.
    """
    scored = []
    credits = {
        "win_rate": {"model_1": 100.0, "tie": 50.0, "model_2": 0.0},
        "wins": {"model_1": 100.0, "tie": 0.0, "model_2": 0.0},
        "ties": {"model_1": 0.0, "tie": 100.0, "model_2": 0.0},
        "losses": {"model_1": 0.0, "tie": 0.0, "model_2": 100.0},
    }
    for model, judged in rows.items():
        means = {}
        for name, credit in credits.items():

            def value(row: Row, credit: dict[str, float] = credit) -> float | None:
                return credit.get(final_winner(row["g1_winner"], row["g2_winner"]))

            answers = _answers(benchmark, judged, value, judge.judgments)
            found = JudgedMeans({model: answers}, resamples=resamples, seed=seed)
            means[f"{PAIRWISE}/{name}"] = found.mean(model)
            if name == "win_rate":
                parts = _parts(benchmark, PAIRWISE)
                by_part = {part: found.mean(model, chosen) for part, chosen in parts.items()}
        by_part.pop(f"{PAIRWISE}/overall")
        scored.append(JudgedScores(model=model, means=means | by_part))
    return _table(PAIRWISE, benchmark, judge, baseline, tuple(scored), costs, resamples)


def _parts(benchmark: MtBench, name: str) -> dict[str, Part]:
    categories = list(dict.fromkeys(question.category for question in benchmark.questions))
    turns = sorted({turn for question in benchmark.questions for turn in range(1, len(question.turns) + 1)})
    parts: dict[str, Part] = {f"{name}/overall": lambda answer: True}
    parts |= {f"{name}/turn_{turn}": _of_turn(turn) for turn in turns}
    return parts | {f"{name}/{category}": _of_category(category) for category in categories}


def _of_turn(turn: int) -> Part:
    return lambda answer: answer.turn == turn


def _of_category(category: str) -> Part:
    return lambda answer: answer.category == category


def _answers(
    benchmark: MtBench, rows: Sequence[Row], value: Callable[[Row], float | None], judgments: int
) -> list[JudgedAnswer]:
    """Gather the judgments of each answer; one that was asked for and is not there counts as missing too."""
    values: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        found = value(row)
        if found is not None:
            values.setdefault((int(row["question_id"]), int(row["turn"])), []).append(found)
    return [
        JudgedAnswer(
            question.id,
            question.category,
            turn,
            tuple(there := values.get((question.id, turn), [])),
            max(0, judgments - len(there)),
        )
        for question in benchmark.questions
        for turn in range(1, len(question.turns) + 1)
    ]


def _table(
    name: str,
    benchmark: MtBench,
    judge: Judge,
    baseline: str,
    rows: tuple[JudgedScores, ...],
    costs: JudgeCosts | None,
    resamples: int,
) -> JudgedTable:
    return JudgedTable(
        benchmark=name,
        benchmark_digest=benchmark.digest,
        questions=len(benchmark.questions),
        judge=judge,
        baseline=baseline,
        rows=rows,
        costs=costs or JudgeCosts(),
        resamples=resamples,
    )
