"""Published MT-Bench scores of the paper's models, with their sources; never to be shown without their judge."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fusion_core.record import Record

FILE = Path(__file__).with_name("published_scores.json")


class PublishedScore(Record):
    """One figure; ``source`` is a key of the table's sources."""

    model: str
    overall: float
    source: str


class PublishedScores(Record):
    """Figures under one judge.

    Parameters
    ----------
    benchmark, judge : str
    sources : dict
        Key to citation.
    scores : tuple of PublishedScore
        Best first.
    """

    benchmark: str
    judge: str
    sources: dict[str, str]
    scores: tuple[PublishedScore, ...]

    @property
    def caption(self) -> str:
        """The line that must stand beside the figures."""
        cited = "; ".join(self.sources.values())
        return (
            f"Published MT-Bench scores under another judge ({self.judge}): they tell the order of those models among "
            f"each other and do not compare with scores of this run. From {cited}."
        )


@lru_cache(maxsize=1)
def published_scores() -> PublishedScores:
    """Return the published scores."""
    return PublishedScores.model_validate_json(FILE.read_text(encoding="utf-8"))
