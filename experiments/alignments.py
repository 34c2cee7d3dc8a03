"""The ways of alignment that are compared, by what they carry over and by the score they lead to."""

from __future__ import annotations

from typing import Any

# The paper keeps the first of two entries that land on one token.
PAPER = {"alignment.positions": "dtw", "alignment.duplicates": "first"}
NOT_CONDITIONED, NO_CHAIN = {"alignment.condition_inside_tokens": False}, {"alignment.gold_consistent": False}
BYTES, NEITHER = "bytes", "bytes, neither conditioning nor chain rule"
STATISTICS, MINED, EXACT = "DTW, mapping statistics", "DTW, MinED", "DTW, exact match"
ALIGNMENTS: dict[str, dict[str, Any]] = {
    BYTES: {},
    "bytes, no conditioning inside tokens": NOT_CONDITIONED,
    "bytes, no chain rule": NO_CHAIN,
    NEITHER: NOT_CONDITIONED | NO_CHAIN,
    STATISTICS: PAPER | {"alignment.vocabulary": "statistics"},
    MINED: PAPER | {"alignment.vocabulary": "mined"},
    EXACT: PAPER | {"alignment.vocabulary": "exact"},
}
