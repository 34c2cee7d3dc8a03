"""Means of judgments over parts of a benchmark, with a bootstrap over questions.

Legend: U answers judged (a turn of a question), Q questions, M models, R resamples, S strata (question categories).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_core.evaluation.bootstrap import FEWEST_FOR_INTERVAL, percentile_interval, resampled_sums
from fusion_core.evaluation.judged_scores import JudgedDifference, JudgedMean


@dataclass(frozen=True)
class JudgedAnswer:
    """The judgments of one answer: those that gave a value, and the number of those that did not."""

    question_id: int
    category: str
    turn: int
    values: tuple[float, ...]
    missing: int = 0


Part = Callable[[JudgedAnswer], bool]


class JudgedMeans:
    """Models' judgments side by side.

    Parameters
    ----------
    answers : mapping from model name to its judged answers
        The same turns of the same questions for every model.
    resamples, seed : int
        Draws of the bootstrap, and their seed. Questions are drawn with all their turns and judgments, within their
        category, the same ones for every model.
    """

    def __init__(self, answers: Mapping[str, Sequence[JudgedAnswer]], *, resamples: int, seed: int) -> None:
        self._models = list(answers)
        self._resamples, self._seed = resamples, seed
        units = sorted({(one.question_id, one.turn) for rows in answers.values() for one in rows})
        self._answers_MU: list[list[JudgedAnswer | None]] = []
        for rows in answers.values():
            by_unit = {(one.question_id, one.turn): one for one in rows}
            self._answers_MU.append([by_unit.get(unit) for unit in units])
        # An answer counts once, however many judgments of it there are.
        self._values_MU = np.array(
            [
                [np.mean(one.values) if one is not None and one.values else np.nan for one in row]
                for row in self._answers_MU
            ]
        )
        self._question_U = np.unique([question for question, _ in units], return_inverse=True)[1]
        categories = {one.question_id: one.category for rows in answers.values() for one in rows}
        self._strata_Q = np.unique([categories[question] for question in sorted(categories)], return_inverse=True)[1]

    def mean(self, model: str, part: Part = lambda answer: True) -> JudgedMean:
        """Return a model's mean over the answers of a part."""
        row = self._models.index(model)
        inside_U = self._inside(part)
        present_U = inside_U & np.isfinite(self._values_MU[row])
        judged = [one for one, inside in zip(self._answers_MU[row], inside_U, strict=True) if inside and one]
        value, low, high = self._ratio(np.nan_to_num(self._values_MU[row]) * present_U, present_U)
        return JudgedMean(
            mean=value,
            low=low,
            high=high,
            n=sum(len(one.values) for one in judged),
            missing=sum(one.missing for one in judged),
        )

    def difference(self, model: str, baseline: str, part: Part = lambda answer: True) -> JudgedDifference:
        """Return how a model's mean differs from the baseline's on the answers that both have judgments of."""
        mine_U, theirs_U = (self._values_MU[self._models.index(name)] for name in (model, baseline))
        common_U = self._inside(part) & np.isfinite(mine_U) & np.isfinite(theirs_U)
        value, low, high = self._ratio(np.nan_to_num(mine_U - theirs_U) * common_U, common_U)
        return JudgedDifference(difference=value, low=low, high=high)

    def _inside(self, part: Part) -> np.ndarray:
        columns = zip(*self._answers_MU, strict=True)
        return np.array([any(one is not None and part(one) for one in column) for column in columns])

    def _ratio(self, sums_U: np.ndarray, counts_U: np.ndarray) -> tuple[float | None, float | None, float | None]:
        if not counts_U.any():
            return None, None, None
        value = float(sums_U.sum() / counts_U.sum())
        if len(np.unique(self._question_U[counts_U.astype(bool)])) < FEWEST_FOR_INTERVAL:
            return value, None, None
        questions = len(self._strata_Q)
        columns = [
            np.bincount(self._question_U, weights=weights.astype(float), minlength=questions)
            for weights in (sums_U, counts_U)
        ]
        drawn_R2 = resampled_sums(np.column_stack(columns), self._strata_Q, self._resamples, self._seed).sum(axis=1)
        # A draw may miss every answer that has a judgment.
        drawn_R2 = drawn_R2[drawn_R2[:, 1] > 0]
        low, high = percentile_interval(drawn_R2[:, 0] / drawn_R2[:, 1])
        return value, low, high
