"""A candidacy as the gates would give it, for tests that move aliases without a fusion."""

from __future__ import annotations

from fusion_core.config import PromotionConfig
from fusion_core.evaluation.decision import Decision, GateResult
from tasks.registry.promotion import Candidacy

NAME = "raced"


def candidacy(name: str, version: str, champion: str | None) -> Candidacy:
    """Return a candidacy that passed."""
    gate = GateResult(gate="required", metric="nats_per_byte", passed=True, reason="it was scored")
    decision = Decision(candidate=f"version {version}", champion=champion, gates=(gate,))
    return Candidacy(model_name=name, version=version, champion=champion, decision=decision, config=PromotionConfig())
