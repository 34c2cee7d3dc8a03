"""Fusing the distributions of the pivot and of projected sources into one: MinCE, AvgCE, and one of them throughout.

Legend: N pivot positions, D dialogues, K entries, S sources; models are the pivot (0) and the sources (1 ... S).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusion_core.alignment.compiled import compiled
from fusion_core.alignment.projection_kernel import Scratch, add_mass, write_row
from fusion_core.distributions import TopK
from fusion_core.errors import AlignmentError

Function = Literal["mince", "avgce", "source", "pivot"]
Level = Literal["dialogue", "token"]


@dataclass(frozen=True)
class Fusion:
    """Fused distributions and how they came about.

    Parameters
    ----------
    top_k : TopK
        Token ids of -1 where the label alone is to be learned.
    winners : int8 [N]
        Model with the lowest cross-entropy on the position's dialogue (or on the position): 0 is the pivot.
    """

    top_k: TopK
    winners: np.ndarray


def fuse(
    pivot: TopK,
    sources: Sequence[TopK],
    function: Function,
    level: Level,
    *,
    cross_entropies: np.ndarray | None = None,
    where_pivot_wins: Literal["distribution", "label"] = "distribution",
    unaligned: Literal["label", "pivot"] = "label",
) -> TopK:
    """Fuse the pivot's distributions with those of sources projected to its tokens and positions.

    Parameters
    ----------
    pivot : TopK [N, K]
    sources : sequence of TopK [N, K]
        One for FuseChat's pairwise fusion, several for FuseLLM's joint one. Rows of -1 are positions at which a
        source has nothing to say.
    function : {"mince", "avgce", "source", "pivot"}
        mince: the distribution of the model with the lowest cross-entropy; ties go to the pivot, then to the earlier
        source. avgce: the mean of all, weighted by exp(-cross-entropy). source: as mince, the pivot left out.
        pivot: the pivot's own throughout.
    level : {"dialogue", "token"}
        Where cross-entropies are compared.
    cross_entropies : float64 [1 + S, D] or [1 + S, N], optional
        Nats per byte or per token, the pivot's first; inf takes a model out. Without it the mean of
        ``-label_log_probs`` over the positions that all models have, which cover the same bytes for all.
    where_pivot_wins : {"distribution", "label"}
        MinCE: what is learned where the pivot is better.
    unaligned : {"label", "pivot"}
        What is learned where the winning source (AvgCE: every source) has nothing to say.

    Returns
    -------
    TopK [N, K]
        K is the largest of the inputs'. Its ``label_log_probs`` are the fused distribution's; where only the label is
        left, the pivot's.

    Raises
    ------
    AlignmentError
        If the inputs cover different positions, or there is no source for ``function="source"``.

    Notes
    -----
    FuseLLM, arXiv 2401.10491, section 3.3; FuseChat, arXiv 2402.16107, section 3.3.
    """
    return fuse_with_winners(
        pivot,
        sources,
        function,
        level,
        cross_entropies=cross_entropies,
        where_pivot_wins=where_pivot_wins,
        unaligned=unaligned,
    ).top_k


def fuse_with_winners(
    pivot: TopK,
    sources: Sequence[TopK],
    function: Function,
    level: Level,
    *,
    cross_entropies: np.ndarray | None = None,
    where_pivot_wins: Literal["distribution", "label"] = "distribution",
    unaligned: Literal["label", "pivot"] = "label",
    uniforms: np.ndarray | None = None,
) -> Fusion:
    """Do what :func:`fuse` does, and say which model won where; same parameters and errors.

    ``uniforms`` float64 [N] in [0, 1): entries are sampled ones, and where AvgCE has more than K of them these draws
    decide which stay, so that their masses stay unbiased.
    """
    _check_positions(pivot, sources)
    models = [pivot, *sources]
    has_row = np.stack([model.token_ids[:, 0] >= 0 for model in models])
    lengths = np.diff(pivot.row_splits)
    if cross_entropies is None:
        cross_entropies = mean_cross_entropies(models, level)
    if level == "dialogue":
        cross_entropies = np.repeat(cross_entropies, lengths, axis=1)
    elif sources:
        # At a single position, a source with nothing to say does not compete.
        cross_entropies = np.where(has_row, cross_entropies, np.inf)
    winners = np.argmin(cross_entropies, axis=0).astype(np.int8)
    silent = np.logical_not(np.any(has_row[1:], axis=0)) if sources else np.zeros(pivot.positions, bool)
    if function == "avgce":
        return Fusion(_average(models, cross_entropies, has_row, silent, unaligned, uniforms), winners)
    if function == "mince":
        fused = _select(models, winners, silent if level == "token" else None, where_pivot_wins, unaligned)
    elif function == "source":
        if not sources:
            raise AlignmentError("The source's distributions alone are asked for, but there is no source; give one.")
        best_source = 1 + np.argmin(cross_entropies[1:], axis=0)
        fused = _select(models, best_source, None, where_pivot_wins, unaligned)
    else:
        fused = _select(models, np.zeros_like(winners), None, "distribution", "label")
    return Fusion(fused, winners)


def mean_cross_entropies(models: Sequence[TopK], level: Level) -> np.ndarray:
    """Return -log p of the gold text for models at the same positions, float64 [models, D] (means) or [models, N].

    Positions at which some model knows no probability count for none of them; a dialogue without any gives inf to all
    but the first model.
    """
    nats = np.stack([-model.label_log_probs.astype(np.float64) for model in models])
    known = np.isfinite(nats)
    if level == "token":
        return np.where(known, nats, np.inf)
    lengths = np.diff(models[0].row_splits)
    dialogue = np.repeat(np.arange(len(lengths)), lengths)
    # A model that knows nothing of a dialogue must not keep the others from being compared.
    covered = np.stack([np.bincount(dialogue, weights=row, minlength=len(lengths)) > 0 for row in known])
    common = np.where(covered[:, dialogue], known, True).all(axis=0)
    counts = np.bincount(dialogue, weights=common, minlength=len(lengths))
    sums = np.stack(
        [
            np.bincount(dialogue, weights=np.where(common & np.isfinite(row), row, 0.0), minlength=len(lengths))
            for row in nats
        ]
    )
    means = np.where(covered & (counts > 0), sums / np.maximum(counts, 1), np.inf)
    means[0, counts == 0] = 0.0
    return means


def _check_positions(pivot: TopK, sources: Sequence[TopK]) -> None:
    for number, source in enumerate(sources, start=1):
        if not np.array_equal(source.row_splits, pivot.row_splits):
            raise AlignmentError(
                f"Source {number} covers {source.positions} positions of {source.dialogues} dialogues, the pivot "
                f"{pivot.positions} of {pivot.dialogues}; project the source to the pivot's positions first."
            )


def _select(
    models: Sequence[TopK],
    winners: np.ndarray,
    silent: np.ndarray | None,
    where_pivot_wins: Literal["distribution", "label"],
    unaligned: Literal["label", "pivot"],
) -> TopK:
    pivot = models[0]
    fused = _empty_like(pivot, max(model.top_k for model in models))
    for number, model in enumerate(models):
        won = winners == number
        if number == 0 and silent is not None:
            won &= ~silent
        if number == 0 and where_pivot_wins == "label":
            continue
        taken = won & (model.token_ids[:, 0] >= 0)
        _copy_rows(model, taken, fused)
    if unaligned == "pivot":
        left = winners > 0 if silent is None else (winners > 0) | silent
        _copy_rows(pivot, left & (fused.token_ids[:, 0] < 0), fused)
    return fused


def _average(
    models: Sequence[TopK],
    cross_entropies: np.ndarray,
    has_row: np.ndarray,
    silent: np.ndarray,
    unaligned: Literal["label", "pivot"],
    uniforms: np.ndarray | None,
) -> TopK:
    pivot = models[0]
    fused = _empty_like(pivot, max(model.top_k for model in models))
    # Only differences matter, and the best model's exponent is then 0.
    best = np.where(has_row, cross_entropies, np.inf).min(axis=0)
    best = np.where(np.isfinite(best), best, 0.0)
    weights = np.where(has_row, np.exp(best - cross_entropies), 0.0)
    weights /= np.maximum(weights.sum(axis=0), 1e-300)
    mixed = ~silent
    size = 1 + max(int(model.token_ids.max(initial=0)) for model in models)
    room = _empty_like(pivot, sum(model.top_k for model in models))
    column = 0
    for number, model in enumerate(models):
        entries = slice(column, column + model.top_k)
        room.token_ids[:, entries] = model.token_ids
        with np.errstate(divide="ignore"):
            room.log_probs[:, entries] = model.log_probs + np.log(weights[number])[:, None]
        column += model.top_k
    draws = np.full(pivot.positions, -1.0) if uniforms is None else np.ascontiguousarray(uniforms, np.float64)
    _merge_entries(room.token_ids, room.log_probs, mixed, size, draws, fused.token_ids, fused.log_probs)
    known = np.stack([np.isfinite(model.label_log_probs) for model in models]) & (weights > 0)
    probabilities = np.stack([np.exp(model.label_log_probs.astype(np.float64)) for model in models])
    masses = np.where(known, weights * probabilities, 0.0).sum(axis=0)
    written = mixed & (masses > 0)
    fused.label_log_probs[written] = np.log(masses[written])
    if unaligned == "pivot":
        _copy_rows(pivot, silent & has_row[0], fused)
    return fused


@compiled
def _merge_entries(token_ids, log_probs, rows, size, draws, out_ids, out_log_probs):
    scratch = Scratch(np.full(size, -1, np.int32), np.empty(size, np.int32), np.empty(size, np.float64))
    for position in range(len(token_ids)):
        if not rows[position]:
            continue
        count = 0
        for entry in range(token_ids.shape[1]):
            token = token_ids[position, entry]
            mass = np.exp(np.float64(log_probs[position, entry]))
            if token >= 0 and mass > 0.0:
                count = add_mass(scratch, count, token, mass, False)
        write_row(scratch, count, False, out_ids[position], out_log_probs[position], -1, draws[position])


def _empty_like(pivot: TopK, top_k: int) -> TopK:
    return TopK(
        np.full((pivot.positions, top_k), -1, np.int32),
        np.full((pivot.positions, top_k), -np.inf, np.float32),
        pivot.label_log_probs.astype(np.float32),
        pivot.row_splits,
    )


def _copy_rows(model: TopK, rows: np.ndarray, fused: TopK) -> None:
    fused.token_ids[rows, : model.top_k] = model.token_ids[rows]
    fused.log_probs[rows, : model.top_k] = model.log_probs[rows]
    known = rows & np.isfinite(model.label_log_probs)
    fused.label_log_probs[known] = model.label_log_probs[known]
