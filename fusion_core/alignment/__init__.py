"""Alignment across tokenizers: positions, vocabularies, and the projection of a source onto the pivot's tokens."""

from fusion_core.alignment.coverage import Counts, Coverage
from fusion_core.alignment.positions import BytePositions, align_by_bytes, align_by_dtw
from fusion_core.alignment.projection import Projection, project, project_with_coverage
from fusion_core.alignment.shared_text import SharedText, Spans, join_responses, place_tokens
from fusion_core.alignment.vocabulary import map_vocabulary

__all__ = [
    "BytePositions",
    "Counts",
    "Coverage",
    "Projection",
    "SharedText",
    "Spans",
    "align_by_bytes",
    "align_by_dtw",
    "join_responses",
    "map_vocabulary",
    "place_tokens",
    "project",
    "project_with_coverage",
]
