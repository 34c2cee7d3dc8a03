"""What became of a landed source: what is remembered of it against what the champion was made of."""

from __future__ import annotations

import pytest

from tasks.landing.quarantine import SourceRecord
from tasks.landing.sources import LandedSource
from tasks.landing.survey import look_at
from tasks.registry.champion_sources import MadeOf

DIGEST = "ab" * 32
SOURCE = LandedSource(
    name="maths-v1", origin="registry", reference="models:/maths/1", landed=1.0, files="file:///maths"
)


def remembered(state: str | None) -> dict[str, SourceRecord]:
    if state is None:
        return {}
    record = SourceRecord(name="maths-v1", reference=SOURCE.reference, state=state, reason="why", digest=DIGEST, at=1.0)
    return {SOURCE.reference: record}


def made_of(champion: bool | None) -> MadeOf:
    """The champion holds the source, holds others, or there is none and the candidate holds it."""
    digests = frozenset({DIGEST[:32]})
    if champion is None:
        return MadeOf(None, "1", frozenset(), digests)
    return MadeOf("1", None, digests if champion else frozenset({"cd" * 16}), frozenset())


@pytest.mark.parametrize(
    ("state", "champion", "expected"),
    [
        (None, False, "landed"),
        ("fused", True, "fused"),
        # Rolled back: what is out of the champion again is not new for that.
        ("fused", False, "fused"),
        ("quarantined", False, "quarantined"),
        # A person promoted it whatever the gates said.
        ("quarantined", True, "fused"),
        # The candidate that the gates refused was made of it.
        ("quarantined", None, "quarantined"),
        # The champion was made of its double; two of the same would be refused.
        ("duplicate", True, "duplicate"),
    ],
)
def test_memory_and_champion_together_say_what_became_of_a_source(
    state: str | None, champion: bool | None, expected: str
) -> None:
    assert look_at(SOURCE, remembered(state), made_of(champion)).state == expected
