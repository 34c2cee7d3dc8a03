"""The gates as re-fusion uses them: a verdict on each fused model, and its promotion where the recipe wants that."""

from __future__ import annotations

from flows.promote import promote
from fusion_core.config import FusionConfig
from tasks.landing.refusion_result import RefusionResult, Verdict
from tasks.registry.register import FusionResult


def judge(config: FusionConfig, fused: FusionResult) -> Verdict:
    """Hold a fused model against the gates; with ``gates: real`` one that passes becomes the champion at once.

    Where a person has the last word, nobody is asked yet: others may be waiting for the recipe.
    """
    real = config.refusion.gates == "real" and config.promotion.approval == "automatic"
    promotion = promote(fused.model_name, fused.model_version, dry_run=not real)
    # A version that is the champion already has passed, whatever a gate says of beating itself.
    passed = promotion.outcome == "unchanged" or (promotion.decision is not None and promotion.decision.passed)
    return Verdict(
        model_name=fused.model_name,
        version=fused.model_version,
        passed=passed,
        reason=promotion.reason,
        promoted=promotion.promoted,
    )


def ask_for_promotion(config: FusionConfig, result: RefusionResult) -> RefusionResult:
    """Let a person decide on the last fused model that passed its gates, where the recipe wants that.

    One that is declined stays registered, and its sources stay fused; `fuseline sources --quarantine` takes one out.
    """
    verdict = result.accepted
    if verdict is None or config.refusion.gates == "dry" or config.promotion.approval == "automatic":
        return result
    promotion = promote(verdict.model_name, verdict.version)
    return result.judged(verdict.model_copy(update={"promoted": promotion.promoted, "reason": promotion.reason}))
