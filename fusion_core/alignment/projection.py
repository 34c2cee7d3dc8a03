"""A source's distributions as distributions over pivot tokens at pivot positions.

Legend: N pivot positions, M source rows, K entries, V_source vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from fusion_core.alignment.gold_tokens import Gold, Strings
from fusion_core.alignment.positions import BytePositions
from fusion_core.alignment.projection_kernel import BOUNDARY, CONDITIONED, NO_ENTRY, NOT_COVERED, Rows
from fusion_core.alignment.projection_loops import project_rows, project_text
from fusion_core.alignment.shared_text import SharedText, Spans
from fusion_core.alignment.trie import build_trie
from fusion_core.distributions import TopK
from fusion_core.encoding.token_bytes import TokenBytes
from fusion_core.errors import AlignmentError

__all__ = ["BOUNDARY", "CONDITIONED", "NOT_COVERED", "NO_ENTRY", "Projection", "project", "project_with_coverage"]

Duplicates = Literal["sum", "first"]


@dataclass(frozen=True)
class Projection:
    """A projected source, and how each position came about.

    Parameters
    ----------
    top_k : TopK
        Rows without a source distribution have token ids of -1; there ``label_log_probs`` is -inf where the source
        has not read the text.
    kinds : uint8 [N]
        BOUNDARY (the source has a boundary there too), CONDITIONED (inside a source token), NO_ENTRY (none of the
        stored entries fits) or NOT_COVERED (the source was cut before, or its tokens match no single pivot token).
    stored, kept : float64 [N]
        Mass of the source's entries that speak at the position, and the part of it that the row holds.
    source_rows : int64 [N]
        Source row behind each position, or -1.
    """

    top_k: TopK
    kinds: np.ndarray
    stored: np.ndarray
    kept: np.ndarray
    source_rows: np.ndarray


def project(
    source: TopK,
    positions: BytePositions | Sequence[Sequence[int]],
    vocabulary: np.ndarray,
    *,
    text: SharedText | None = None,
    condition_inside_tokens: bool = True,
    gold_consistent: bool = True,
    duplicates: Duplicates = "sum",
) -> TopK:
    """Turn a source's distributions into distributions over pivot tokens at pivot positions.

    Parameters
    ----------
    source : TopK [M, K]
    positions : BytePositions [N], or for each pivot token the source tokens matched to it
        From :func:`align_by_bytes` or :func:`align_by_dtw`. Matched tokens count only one to one.
    vocabulary : int32 [V_source]
        From :func:`map_vocabulary`; source ids beyond it (a padded embedding) have no pivot token. With ``text``,
        inside a token and behind a word-start space only one model has, what is left of an entry is looked up by its
        bytes, whichever way the vocabulary was mapped.
    text : SharedText, optional
        The gold text and where both models' tokens stand in it. Without it only shared boundaries are projected,
        through the vocabulary alone, and each position keeps the source's own ``label_log_probs``.
    condition_inside_tokens : bool
        With ``text``: condition the source on the bytes already read where the pivot's boundary falls inside one of
        its tokens; otherwise such positions stay empty.
    gold_consistent : bool
        With ``text``: the pivot's gold token gets what the source gives to its bytes. The projected
        ``label_log_probs`` is that mass in either case.
    duplicates : {"sum", "first"}
        Entries that land on one pivot token: sum adds their mass. first keeps the first and normalises the row
        again, as the paper's code does.

    Returns
    -------
    TopK [N, K]
        Rows hold the source's mass, at most 1: nothing is normalised again but conditional rows, whose mass is
        relative to the entries that fit. With ``text``, the sum of ``label_log_probs`` over a response is close to
        the source's log-probability of its own tokens, and exactly that for prefix codes; otherwise other spellings of
        the same bytes count too.

    Raises
    ------
    AlignmentError
        If positions or text belong to other arrays, or a text is given with matched tokens.

    Notes
    -----
    Section 3.2 of FuseLLM, arXiv 2401.10491, with byte-level conditioning (compare arXiv 2410.09303) and the chain rule
    over the known text in place of its one-hot fallbacks.
    """
    return project_with_coverage(
        source,
        positions,
        vocabulary,
        text=text,
        condition_inside_tokens=condition_inside_tokens,
        gold_consistent=gold_consistent,
        duplicates=duplicates,
    ).top_k


def project_with_coverage(
    source: TopK,
    positions: BytePositions | Sequence[Sequence[int]],
    vocabulary: np.ndarray,
    *,
    text: SharedText | None = None,
    condition_inside_tokens: bool = True,
    gold_consistent: bool = True,
    duplicates: Duplicates = "sum",
    uniforms: np.ndarray | None = None,
) -> Projection:
    """Do what :func:`project` does, and say how each position came about; same parameters and errors.

    ``uniforms`` float64 [N] in [0, 1): the source's entries are sampled ones, and a row that gets more than K is cut by
    these draws so that its masses stay unbiased.
    """
    if isinstance(positions, BytePositions):
        rows, row_splits = positions.source_rows, positions.row_splits
    elif text is not None:
        raise AlignmentError("A text needs byte positions; project matched tokens without it.")
    else:
        rows = np.array([match[0] if len(match) == 1 else -1 for match in positions], np.int64)
        row_splits = np.array([0, len(rows)], np.int64)
    if len(rows) and int(rows.max()) >= source.positions:
        raise AlignmentError(
            f"Positions point at source row {int(rows.max())}, but the source has {source.positions}; align the same "
            "dialogues that were extracted."
        )
    vocabulary = np.ascontiguousarray(vocabulary, np.int32)
    out_ids = np.full((len(rows), source.top_k), -1, np.int32)
    out_log_probs = np.full(out_ids.shape, -np.inf, np.float32)
    out_labels = np.full(len(rows), -np.inf, np.float32)
    distributions = Rows(
        np.ascontiguousarray(source.token_ids, np.int32),
        np.ascontiguousarray(source.log_probs, np.float32),
        np.ascontiguousarray(source.label_log_probs, np.float32),
    )
    keep_first = duplicates == "first"
    draws = np.full(len(rows), -1.0) if uniforms is None else np.ascontiguousarray(uniforms, np.float64)
    if text is None or isinstance(positions, Sequence):
        kinds = np.where(rows >= 0, BOUNDARY, NOT_COVERED).astype(np.uint8)
        if isinstance(positions, BytePositions):
            kinds[(rows >= 0) & (positions.bytes_read > 0)] = NO_ENTRY
        size = int(vocabulary.max(initial=-1)) + 1
        stored, kept = project_rows(
            np.where(kinds == BOUNDARY, rows, -1), distributions, vocabulary, size, keep_first,
            out_ids, out_log_probs, out_labels,
        )  # fmt: skip
        kinds[(kinds == BOUNDARY) & (out_ids[:, 0] < 0)] = NO_ENTRY
    elif _is_same_tokenization(text):
        _check_text(source, rows, text)
        mass = np.exp(source.log_probs.astype(np.float64)).sum(axis=1)
        return Projection(source, np.full(len(rows), BOUNDARY, np.uint8), mass, mass, np.arange(len(rows)))
    else:
        _check_text(source, rows, text)
        kinds, stored, kept = project_text(
            rows, positions.bytes_read, distributions, text.text, _gold(text.pivot), _gold(text.source),
            _strings(text.pivot_bytes), _strings(text.source_bytes), vocabulary, build_trie(text.pivot_bytes),
            text.pivot_bytes.digest == text.source_bytes.digest, condition_inside_tokens, gold_consistent, keep_first,
            draws, out_ids, out_log_probs, out_labels,
        )  # fmt: skip
    return Projection(TopK(out_ids, out_log_probs, out_labels, row_splits), kinds, stored, kept, rows)


def _is_same_tokenization(text: SharedText) -> bool:
    pivot, source = text.pivot, text.source
    return text.pivot_bytes.digest == text.source_bytes.digest and all(
        np.array_equal(getattr(pivot, part.name), getattr(source, part.name)) for part in fields(Spans)
    )


def _gold(spans: Spans) -> Gold:
    return Gold(spans.starts, spans.ends, spans.leads, spans.labels, spans.is_end_of_turn)


def _strings(vocabulary: TokenBytes) -> Strings:
    return Strings(*vocabulary.flat, vocabulary.is_special)


def _check_text(source: TopK, rows: np.ndarray, text: SharedText) -> None:
    if len(rows) != len(text.pivot.labels) or source.positions != len(text.source.labels):
        raise AlignmentError(
            f"The text places {len(text.pivot.labels)} pivot and {len(text.source.labels)} source tokens, but there "
            f"are {len(rows)} positions and {source.positions} source distributions; encode the dialogues that were "
            "extracted, with the same template and length limit."
        )
