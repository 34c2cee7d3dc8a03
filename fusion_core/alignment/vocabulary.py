"""Which pivot token stands for each source token.

Legend: V_source, V_pivot vocabularies. Nothing here takes memory in proportion to their product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy import sparse
from transformers import PreTrainedTokenizerBase

from fusion_core.alignment.edit_distance import nearest_texts
from fusion_core.alignment.trie import build_trie, longest_prefixes
from fusion_core.encoding.changed_text import changing_normaliser
from fusion_core.encoding.token_bytes import TokenBytes, token_bytes
from fusion_core.errors import AlignmentError

Method = Literal["bytes", "exact", "mined", "statistics"]
# Attributes of a tokenizer that name its control tokens, the more telling first.
ROLES = ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id")


def map_vocabulary(
    source_tokenizer: PreTrainedTokenizerBase,
    pivot_tokenizer: PreTrainedTokenizerBase,
    method: Method,
    *,
    counts: sparse.csr_matrix | None = None,
    roles: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Map every source token to the pivot token that stands for it.

    Parameters
    ----------
    source_tokenizer, pivot_tokenizer : fast tokenizers
    method : {"bytes", "exact", "mined", "statistics"}
        bytes: the same bytes, else the longest pivot token that is a prefix of them. exact: the same bytes only (EM).
        mined: the pivot token at the smallest edit distance (MinED). statistics: the pivot token most often aligned
        with it (MS); of equally frequent ones the one of the same bytes, then the lowest id; tokens never seen map
        as with exact.
    counts : scipy CSR [V_source, V_pivot], for ``statistics``
        How often each pair of tokens was aligned, see :func:`fusion_core.alignment.statistics.count_aligned_pairs`.
    roles : mapping of source id to pivot id, optional
        Control tokens known to play the same part, such as the two ends of turn. The others map by equal text, then by
        the tokenizers' own roles (end, begin, padding, unknown).

    Returns
    -------
    int32 [V_source]
        -1 where there is none. Equal tokenizers map every token to itself. Where the pivot's normaliser changes text
        (lower case), source tokens map as the pivot reads them.

    Raises
    ------
    AlignmentError
        If ``counts`` is missing, of another shape, or given to another method.

    Notes
    -----
    EM: FuseLLM, arXiv 2401.10491 (and Fu et al. 2023). MinED: section 3.2 there. MS: FuseChat, arXiv 2402.16107,
    section 3.3. Different from the published code, word-start marks and byte alphabets are compared by what they mean.
    """
    source, pivot = token_bytes(source_tokenizer), token_bytes(pivot_tokenizer)
    if (method == "statistics") != (counts is not None):
        raise AlignmentError("`counts` of aligned pairs belong to the method 'statistics', and only to it.")
    same = source.digest == pivot.digest
    read = _as_read_by(pivot_tokenizer, source)
    if same:
        same = read is source or _as_read_by(source_tokenizer, source).values == read.values
    source = read
    if same:
        vocabulary = np.arange(len(source), dtype=np.int32)
    elif method == "bytes":
        vocabulary = _longest_prefixes(source, pivot)
    else:
        vocabulary = _same_bytes(source, pivot)
        if method == "mined":
            vocabulary = _nearest(source, pivot, vocabulary)
        elif counts is not None:
            vocabulary = _most_frequent(source, pivot, vocabulary, counts)
    if not same:
        _map_special(source_tokenizer, pivot_tokenizer, vocabulary)
    for source_id, pivot_id in (roles or {}).items():
        vocabulary[source_id] = pivot_id
    return vocabulary


def _as_read_by(tokenizer: PreTrainedTokenizerBase, vocabulary: TokenBytes) -> TokenBytes:
    """Return a vocabulary whose tokens went through a tokenizer's normaliser; pieces of characters stay as they are."""
    normaliser = changing_normaliser(tokenizer.backend_tokenizer)
    if normaliser is None:
        return vocabulary
    values = list(vocabulary.values)
    for index in np.flatnonzero(~vocabulary.is_special).tolist():
        try:
            changed = normaliser.normalize_str(values[index].decode()).encode()
        except UnicodeDecodeError:
            continue
        values[index] = changed or values[index]
    return replace(vocabulary, values=values) if values != vocabulary.values else vocabulary


def _longest_prefixes(source: TokenBytes, pivot: TokenBytes) -> np.ndarray:
    vocabulary = longest_prefixes(build_trie(pivot), *source.flat)
    vocabulary[source.is_special] = -1
    return vocabulary


def _same_bytes(source: TokenBytes, pivot: TokenBytes) -> np.ndarray:
    vocabulary = _longest_prefixes(source, pivot)
    mapped = vocabulary >= 0
    same_length = pivot.lengths[vocabulary[mapped]] == source.lengths[mapped]
    vocabulary[np.flatnonzero(mapped)[~same_length]] = -1
    return vocabulary


def _nearest(source: TokenBytes, pivot: TokenBytes, same: np.ndarray) -> np.ndarray:
    wanted = np.flatnonzero((same < 0) & ~source.is_special & (source.lengths > 0))
    offered = np.flatnonzero(~pivot.is_special & (pivot.lengths > 0))
    nearest = nearest_texts([_text(source.values[i]) for i in wanted], [_text(pivot.values[i]) for i in offered])
    vocabulary = same.copy()
    vocabulary[wanted] = offered[nearest]
    return vocabulary


def _most_frequent(source: TokenBytes, pivot: TokenBytes, same: np.ndarray, counts: sparse.csr_matrix) -> np.ndarray:
    if counts.shape != (len(source), len(pivot)):
        raise AlignmentError(
            f"Counts of aligned pairs have the shape {counts.shape}; these tokenizers need {(len(source), len(pivot))}."
        )
    vocabulary = same.copy()
    pairs = sparse.coo_matrix(counts)
    is_same = same[pairs.row] == pairs.col
    # Last key first: by source token, then most frequent, then the same bytes, then the lowest id.
    order = np.lexsort((pairs.col, ~is_same, -pairs.data, pairs.row))
    order = order[pairs.data[order] > 0]
    rows, first = np.unique(pairs.row[order], return_index=True)
    vocabulary[rows] = pairs.col[order][first]
    return vocabulary


def _map_special(
    source_tokenizer: PreTrainedTokenizerBase, pivot_tokenizer: PreTrainedTokenizerBase, vocabulary: np.ndarray
) -> None:
    source, pivot = token_bytes(source_tokenizer), token_bytes(pivot_tokenizer)
    vocabulary[source.is_special] = -1
    for role in reversed(ROLES):
        source_id, pivot_id = getattr(source_tokenizer, role, None), getattr(pivot_tokenizer, role, None)
        if source_id is not None and pivot_id is not None:
            vocabulary[source_id] = pivot_id
    by_text = {pivot.values[index]: index for index in np.flatnonzero(pivot.is_special)[::-1].tolist()}
    for index in np.flatnonzero(source.is_special).tolist():
        vocabulary[index] = by_text.get(source.values[index], vocabulary[index])


def _text(value: bytes) -> str:
    # Bytes that are no whole characters stand for themselves, so that distances count them.
    return value.decode("utf-8", errors="surrogateescape")
