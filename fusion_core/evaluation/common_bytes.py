"""What several models read of the same dialogues: the bytes on which their nats compare."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import numpy as np

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.held_out_scores import HeldOutScores


class CoveredDialogue(NamedTuple):
    """A dialogue up to the last place that all models reach: each model's nats up to there, and the response bytes."""

    id: str
    domain: str
    nats: tuple[float, ...]
    bytes: int
    bytes_cut: int


def common_coverage(scores: Mapping[str, HeldOutScores]) -> tuple[list[CoveredDialogue], int]:
    """Cut every dialogue to what all models read of it, and count those of which nothing is left.

    Raises
    ------
    EvaluationError
        If models were scored on different dialogues under one id.
    """
    ids, left_out = _common_dialogues(scores)
    covered_dialogues = []
    by_id = {name: {score.dialogue_id: score for score in model.dialogues} for name, model in scores.items()}
    for dialogue_id in ids:
        each = [by_id[name][dialogue_id] for name in scores]
        if len({score.response_bytes for score in each}) != 1:
            raise EvaluationError(
                f"Dialogue {dialogue_id} has responses of different lengths for different models; score all models "
                "on the same dialogues."
            )
        common = reduce(np.intersect1d, [np.asarray(score.ends) for score in each])
        if len(common) == 0 or (covered := each[0].bytes_at(int(common[-1]))) == 0:
            left_out += 1
            continue
        end = int(common[-1])
        turn_ends = np.intersect1d(common, each[0].turn_ends)
        nats = tuple(score.nats_at(end, turn_ends) for score in each)
        cut = sum(each[0].response_bytes) - covered
        covered_dialogues.append(CoveredDialogue(dialogue_id, each[0].domain, nats, covered, cut))
    return covered_dialogues, left_out


def _common_dialogues(scores: Mapping[str, HeldOutScores]) -> tuple[list[str], int]:
    everywhere = [{score.dialogue_id for score in model.dialogues} for model in scores.values()]
    seen = set().union(*everywhere, *(set(model.refused) for model in scores.values()))
    common = set.intersection(*everywhere)
    return sorted(common), len(seen) - len(common)
