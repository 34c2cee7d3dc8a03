"""From the shards of a pivot and its sources to one fused shard that training reads.

Legend: D dialogues, N pivot positions, S sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from fusion_core.alignment.coverage import Counts, Coverage
from fusion_core.alignment.matching import match_one_to_one
from fusion_core.alignment.positions import BytePositions, align_spans
from fusion_core.alignment.projection import (
    BOUNDARY,
    CONDITIONED,
    NO_ENTRY,
    NOT_COVERED,
    Projection,
    project_with_coverage,
)
from fusion_core.alignment.sampled_rows import cut_uniforms
from fusion_core.alignment.shared_text import SharedText, Spans, join_responses, place_tokens
from fusion_core.alignment.vocabulary import map_vocabulary
from fusion_core.config import AlignmentConfig, FusionFunctionConfig
from fusion_core.dialogues import Dialogue
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import DialogueRefusedError, ShardError
from fusion_core.fusion import fuse_with_winners
from fusion_core.shards import Shard, ShardMetadata, TrainingInputs

__all__ = ["Coverage", "fuse_shard", "pair_vocabulary"]


def pair_vocabulary(
    pivot_encoder: Encoder,
    source_encoder: Encoder,
    alignment: AlignmentConfig,
    *,
    counts: sparse.csr_matrix | None = None,
) -> np.ndarray:
    """Map a source's vocabulary to the pivot's, the ends of turn of their chat templates onto each other.

    Parameters
    ----------
    pivot_encoder, source_encoder : Encoder
    alignment : AlignmentConfig
    counts : scipy CSR [V_source, V_pivot]
        Needed by ``vocabulary: statistics``, and only by it.

    Returns
    -------
    int32 [V_source]

    Raises
    ------
    AlignmentError
        If counts are missing, not needed or of another shape.
    """
    ends = (source_encoder.end_of_turn_id, pivot_encoder.end_of_turn_id)
    roles = {ends[0]: ends[1]} if ends[0] is not None and ends[1] is not None else {}
    return map_vocabulary(
        source_encoder.tokenizer, pivot_encoder.tokenizer, alignment.vocabulary, counts=counts, roles=roles
    )


def fuse_shard(
    dialogues: Sequence[Dialogue],
    pivot: Shard,
    sources: Sequence[Shard],
    pivot_encoder: Encoder,
    source_encoders: Sequence[Encoder],
    alignment: AlignmentConfig,
    fusion: FusionFunctionConfig,
    vocabularies: Sequence[np.ndarray],
    *,
    source_names: Sequence[str] | None = None,
    model_digest: str = "",
) -> tuple[Shard, Coverage]:
    """Project every source onto the pivot's tokens and positions, and fuse.

    Parameters
    ----------
    dialogues : sequence of Dialogue [D]
        Those that were extracted, in the same order.
    pivot, sources : Shard
        Distributions over each model's own tokens.
    pivot_encoder, source_encoders : Encoder
        As they were for extraction.
    alignment : AlignmentConfig
    fusion : FusionFunctionConfig
    vocabularies : sequence of int32 [V_source]
        One for each source, from :func:`pair_vocabulary`.
    source_names : sequence of str, optional
        What the coverage calls the sources; default ``source-1`` and so on.
    model_digest : str
        Digest of everything that went into the result, for its metadata.

    Returns
    -------
    Shard
        Distributions over pivot tokens with the pivot's training inputs. A dialogue that the pivot's encoder refuses
        has no positions.
    Coverage

    Raises
    ------
    ShardError
        If the shards hold other dialogues or positions than the encoders give.
    """
    names = list(source_names or [f"source-{number}" for number in range(1, len(sources) + 1)])
    text, response_starts = join_responses(dialogues)
    encoded = _encode("the pivot", dialogues, pivot_encoder, pivot)
    pivot_spans = place_tokens(encoded, response_starts)
    pivot_bytes = token_bytes(pivot_encoder.tokenizer)
    source_spans, projections = [], []
    models = zip(names, sources, source_encoders, vocabularies, strict=True)
    for number, (name, shard, encoder, vocabulary) in enumerate(models):
        spans = place_tokens(_encode(f"source {name!r}", dialogues, encoder, shard), response_starts)
        shared = SharedText(text, pivot_spans, spans, pivot_bytes, token_bytes(encoder.tokenizer))
        source_spans.append(spans)
        projections.append(_project(shard, shared, vocabulary, alignment, _draws(pivot, f"source {number}")))
    cross_entropies = _cross_entropies(pivot, sources, pivot_spans, source_spans, projections, fusion)
    fused = fuse_with_winners(
        pivot.top_k,
        [projection.top_k for projection in projections],
        fusion.function,
        fusion.level,
        cross_entropies=cross_entropies,
        where_pivot_wins=fusion.where_pivot_wins,
        unaligned=fusion.unaligned,
        uniforms=_draws(pivot, "fusion"),
    )
    metadata = ShardMetadata(model_digest, pivot.metadata.dataset_digest, fused.top_k.top_k, pivot.metadata.truncation)
    shard = Shard(
        fused.top_k, pivot.dialogue_ids, pivot.domains, pivot.response_bytes, metadata, _training_inputs(encoded)
    )
    return shard, _coverage(names, pivot, projections, fused.winners)


def _encode(who: str, dialogues: Sequence[Dialogue], encoder: Encoder, shard: Shard) -> list[EncodedDialogue | None]:
    if [dialogue.id for dialogue in dialogues] != shard.dialogue_ids:
        raise ShardError(
            f"The distributions of {who} are of other dialogues ({len(shard.dialogue_ids)}) than the {len(dialogues)} "
            "to fuse; extract these dialogues with it."
        )
    outcomes = encoder.encode_all(dialogues)
    encoded = [None if isinstance(outcome, DialogueRefusedError) else outcome for outcome in outcomes]
    for dialogue, item, expected in zip(dialogues, encoded, np.diff(shard.top_k.row_splits), strict=True):
        found = 0 if item is None else len(item.response_positions)
        if found != expected:
            raise ShardError(
                f"Dialogue {dialogue.id}: {who} has {expected} extracted positions, its tokenizer and template now "
                f"give {found}; extract again, or use the length limit and template of the extraction."
            )
    return encoded


def _draws(pivot: Shard, stream: str) -> np.ndarray | None:
    """One number in [0, 1) for each position of sampled shards, by which rows with too many entries are cut."""
    if pivot.metadata.truncation != "sampled":
        return None
    positions = np.diff(pivot.top_k.row_splits)
    parts = [cut_uniforms(stream, *dialogue) for dialogue in zip(pivot.dialogue_ids, positions, strict=True)]
    return np.concatenate([np.zeros(0), *parts])


def _project(
    shard: Shard, shared: SharedText, vocabulary: np.ndarray, alignment: AlignmentConfig, draws: np.ndarray | None
) -> Projection:
    pivot, source = shared.pivot, shared.source
    if alignment.positions == "dtw":
        rows = match_one_to_one(pivot, source, shared.pivot_bytes, shared.source_bytes, vocabulary)
        positions = BytePositions(rows, np.zeros(len(rows), np.int32), pivot.row_splits)
        return project_with_coverage(shard.top_k, positions, vocabulary, duplicates=alignment.duplicates)
    rows, bytes_read = align_spans(pivot.starts, pivot.ends, source.starts, source.ends)
    return project_with_coverage(
        shard.top_k,
        BytePositions(rows, bytes_read, pivot.row_splits),
        vocabulary,
        text=shared,
        condition_inside_tokens=alignment.condition_inside_tokens,
        gold_consistent=alignment.gold_consistent,
        duplicates=alignment.duplicates,
        uniforms=draws,
    )


def _cross_entropies(
    pivot: Shard,
    sources: Sequence[Shard],
    pivot_spans: Spans,
    source_spans: Sequence[Spans],
    projections: Sequence[Projection],
    fusion: FusionFunctionConfig,
) -> np.ndarray:
    """Compare the models on what all of them have read: float64 [1 + S, D], or [1 + S, N] at token level."""
    pivot_nats = -pivot.top_k.label_log_probs.astype(np.float64)
    if fusion.level == "token":
        rows = [pivot_nats]
        for shard, projection in zip(sources, projections, strict=True):
            nats = -projection.top_k.label_log_probs.astype(np.float64)
            if fusion.cross_entropy_unit == "token":
                own = -shard.top_k.label_log_probs.astype(np.float64)
                read = np.isfinite(nats) & (projection.source_rows >= 0)
                nats = np.where(read, own[np.maximum(projection.source_rows, 0)] if len(own) else np.inf, np.inf)
            rows.append(np.where(np.isfinite(nats), nats, np.inf))
        return np.stack(rows)
    spans = [pivot_spans, *source_spans]
    return np.stack(
        [
            _dialogue_cross_entropy(shard.top_k.label_log_probs, own, common, fusion.cross_entropy_unit)
            for shard, own, common in zip([pivot, *sources], spans, _commonly_read(spans), strict=True)
        ]
    )


def _commonly_read(spans: Sequence[Spans]) -> list[np.ndarray]:
    """Tokens on text that every model has read which has read the dialogue at all; bool [M] for each model.

    Models may be cut at different lengths, and not every template has an end of turn.
    """
    dialogues = len(spans[0].row_splits) - 1
    reached = np.full(dialogues, np.iinfo(np.int64).max)
    readers = np.zeros(dialogues, np.int64)
    owners = []
    for own in spans:
        read = np.diff(own.row_splits) > 0
        readers += read
        reached[read] = np.minimum(reached[read], own.ends[own.row_splits[1:][read] - 1])
        owners.append(np.repeat(np.arange(dialogues), np.diff(own.row_splits)))
    places, models = np.unique(np.concatenate([own.ends[own.is_end_of_turn] for own in spans]), return_counts=True)
    common = []
    for own, owner in zip(spans, owners, strict=True):
        inside = own.ends <= reached[owner]
        end = own.is_end_of_turn
        inside[end] &= models[np.searchsorted(places, own.ends[end])] == readers[owner[end]]
        common.append(inside)
    return common


def _dialogue_cross_entropy(label_log_probs: np.ndarray, own: Spans, common: np.ndarray, unit: str) -> np.ndarray:
    dialogues = len(own.row_splits) - 1
    dialogue = np.repeat(np.arange(dialogues), np.diff(own.row_splits))
    nats = np.bincount(dialogue[common], weights=-label_log_probs[common].astype(np.float64), minlength=dialogues)
    sizes = (own.ends - own.starts) if unit == "byte" else np.ones(len(own.ends), np.int64)
    size = np.bincount(dialogue[common], weights=sizes[common], minlength=dialogues)
    return np.where(size > 0, nats / np.maximum(size, 1), np.inf)


def _training_inputs(encoded: Sequence[EncodedDialogue | None]) -> TrainingInputs:
    read = [item for item in encoded if item is not None]
    lengths = np.array([0 if item is None else len(item.input_ids) for item in encoded], np.int64)
    empty = np.zeros(0, np.int32)
    return TrainingInputs(
        np.concatenate([empty, *(item.input_ids for item in read)]).astype(np.int32),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate([empty, *(item.response_positions for item in read)]).astype(np.int32),
    )


def _coverage(names: Sequence[str], pivot: Shard, projections: Sequence[Projection], winners: np.ndarray) -> Coverage:
    splits = pivot.top_k.row_splits
    sources: dict[str, dict[str, Counts]] = {}
    for number, (name, projection) in enumerate(zip(names, projections, strict=True), start=1):
        domains = sources.setdefault(name, {})
        for dialogue, domain in enumerate(pivot.domains):
            rows = slice(int(splits[dialogue]), int(splits[dialogue + 1]))
            kinds = np.bincount(projection.kinds[rows], minlength=4)
            won = winners[rows] == number
            supervised = projection.kinds[rows] <= CONDITIONED
            counts = Counts(
                dialogues=1,
                positions=len(won),
                boundary=int(kinds[BOUNDARY]),
                conditioned=int(kinds[CONDITIONED]),
                no_entry=int(kinds[NO_ENTRY]),
                not_covered=int(kinds[NOT_COVERED]),
                stored_mass=float(projection.stored[rows][supervised].sum()),
                kept_mass=float(projection.kept[rows][supervised].sum()),
                dialogues_won=int(2 * won.sum() > len(won) > 0),
                positions_won=int(won.sum()),
            )
            domains[domain] = domains.get(domain, Counts()) + counts
    return Coverage(sources)
