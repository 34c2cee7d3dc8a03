"""The ways of alignment that are compared, by what they carry over and by the score they lead to."""

from __future__ import annotations

from typing import Any

# The paper keeps the first of two entries that land on one token.
PAPER = {"alignment.positions": "dtw", "alignment.duplicates": "first"}
NOT_CONDITIONED, NO_CHAIN = {"alignment.condition_inside_tokens": False}, {"alignment.gold_consistent": False}
BYTES, STATISTICS = "bytes", "DTW, mapping statistics"
ALIGNMENTS: dict[str, dict[str, Any]] = {
    BYTES: {},
    "bytes, no conditioning inside tokens": NOT_CONDITIONED,
    "bytes, no chain rule": NO_CHAIN,
    "bytes, neither conditioning nor chain rule": NOT_CONDITIONED | NO_CHAIN,
    STATISTICS: PAPER | {"alignment.vocabulary": "statistics"},
    "DTW, MinED": PAPER | {"alignment.vocabulary": "mined"},
    "DTW, exact match": PAPER | {"alignment.vocabulary": "exact"},
}
