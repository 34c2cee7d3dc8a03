"""Held-out scores of several models made comparable, whatever their tokenizers and wherever they were cut.

Legend: D dialogues, M models, R resamples, S domains.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.bootstrap import CONFIDENCE, FEWEST_FOR_INTERVAL, percentile_interval, resampled_sums
from fusion_core.evaluation.common_bytes import common_coverage
from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.record import Record


class Score(Record):
    """Nats per response byte, and how they differ from the baseline's (95 % interval; None where not known)."""

    nats_per_byte: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class ScoreRow(Record):
    """One model's line: per domain, over all bytes (``overall``) and as the mean of the domains."""

    model: str
    domains: dict[str, Score]
    overall: Score
    mean_of_domains: Score
    refused: int


class ScoreTable(Record):
    """Models on the same bytes of the same dialogues.

    Parameters
    ----------
    baseline : str
        The model that differences are taken to.
    rows : tuple of ScoreRow
    dialogues, response_bytes : dict
        What was compared, per domain.
    left_out : int
        Dialogues that at least one model could not read at all.
    bytes_cut : int
        Response bytes of the compared dialogues beyond the last place that all models reach.
    resamples : int
        Draws behind the intervals.
    """

    baseline: str
    rows: tuple[ScoreRow, ...]
    dialogues: dict[str, int]
    response_bytes: dict[str, int]
    left_out: int
    bytes_cut: int
    resamples: int

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains in the order of the columns."""
        return tuple(self.dialogues)

    def row(self, model: str) -> ScoreRow:
        """Return one model's line."""
        return next(row for row in self.rows if row.model == model)


def compare(
    scores: Mapping[str, HeldOutScores],
    baseline: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> ScoreTable:
    """Score models on what all of them read: the same dialogues, up to the last place where all have a boundary.

    Tokenizers cut a dialogue of too many tokens at different bytes, so each dialogue counts up to the last place in its
    responses at which every model's labels end together: its very end where nobody was cut. An end of turn counts where
    all models predict one; a template that ends turns with ordinary text has none. Differences are taken to the
    baseline; their intervals come from a paired bootstrap over dialogues, drawn within each domain, and are left out
    where a domain has fewer than five dialogues.

    Parameters
    ----------
    scores : mapping from model name to HeldOutScores
        In the order of the table's lines.
    baseline : str
        Which of them is the baseline.
    resamples, seed : int
        Draws of the bootstrap, and their seed.
    confidence : float
        Share of the draws that an interval holds.

    Raises
    ------
    EvaluationError
        If the baseline is not among the models, or no dialogue was read by all of them.
    """
    if baseline not in scores:
        raise EvaluationError(f"The baseline {baseline!r} has no scores; there are scores of {', '.join(scores)}.")
    covered, left_out = common_coverage(scores)
    if not covered:
        raise EvaluationError(
            f"No held-out dialogue was read by all of {', '.join(scores)}; raise `max_length_tokens` or look at why "
            "dialogues were refused."
        )
    return _table(
        list(scores),
        baseline,
        np.asarray([dialogue.nats for dialogue in covered]),
        np.asarray([dialogue.bytes for dialogue in covered]),
        [dialogue.domain for dialogue in covered],
        refused=[len(model.refused) for model in scores.values()],
        left_out=left_out,
        bytes_cut=sum(dialogue.bytes_cut for dialogue in covered),
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


def _table(
    models: list[str],
    baseline: str,
    nats_DM: np.ndarray,
    bytes_D: np.ndarray,
    domains_D: list[str],
    *,
    refused: list[int],
    left_out: int,
    bytes_cut: int,
    resamples: int,
    seed: int,
    confidence: float,
) -> ScoreTable:
    domains, strata_D = np.unique(domains_D, return_inverse=True)
    dialogues_S = np.bincount(strata_D)
    values = np.column_stack([nats_DM, bytes_D])
    sums_1SM = np.stack([np.bincount(strata_D, weights=column) for column in values.T], axis=1)[None]
    scores_1M = _ratios(sums_1SM)
    draws_RM = _ratios(resampled_sums(values, strata_D, resamples, seed))
    pivot = models.index(baseline)
    rows = []
    for index, model in enumerate(models):
        cells = []
        for part in range(len(domains) + 2):
            value = float(scores_1M[part][0, index])
            weighed = dialogues_S[part] if part < len(domains) else dialogues_S.min()
            if index == pivot:
                cells.append(Score(nats_per_byte=value))
                continue
            low = high = None
            if weighed >= FEWEST_FOR_INTERVAL:
                low, high = percentile_interval(draws_RM[part][:, index] - draws_RM[part][:, pivot], confidence)
            difference = value - float(scores_1M[part][0, pivot])
            cells.append(Score(nats_per_byte=value, difference=difference, low=low, high=high))
        *by_domain, overall, mean = cells
        rows.append(
            ScoreRow(
                model=model,
                domains=dict(zip(map(str, domains), by_domain, strict=True)),
                overall=overall,
                mean_of_domains=mean,
                refused=refused[index],
            )
        )
    bytes_S = np.bincount(strata_D, weights=bytes_D).astype(np.int64)
    return ScoreTable(
        baseline=baseline,
        rows=tuple(rows),
        dialogues={str(name): int(count) for name, count in zip(domains, dialogues_S, strict=True)},
        response_bytes={str(name): int(count) for name, count in zip(domains, bytes_S, strict=True)},
        left_out=left_out,
        bytes_cut=bytes_cut,
        resamples=resamples,
    )


def _ratios(sums_RSM: np.ndarray) -> list[np.ndarray]:
    """Turn sums of nats (all columns but the last) and bytes (the last) into nats per byte.

    Returns one array [R, M] for every domain, then one over all bytes, then one for the mean of the domains.
    """
    by_domain_RSM = sums_RSM[:, :, :-1] / sums_RSM[:, :, -1:]
    total_RM = sums_RSM.sum(axis=1)
    return [
        *(by_domain_RSM[:, stratum] for stratum in range(sums_RSM.shape[1])),
        total_RM[:, :-1] / total_RM[:, -1:],
        by_domain_RSM.mean(axis=1),
    ]
