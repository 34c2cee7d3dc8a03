"""Promotion: a registered fused model becomes the champion."""

from __future__ import annotations

from prefect import flow

from tasks.promotion import Decision, make_champion
from tasks.stage_task import log_errors_plainly


@flow(name="promote", flow_run_name="promote {model_name}")
def promote(model_name: str, version: str | None = None) -> Decision:
    """Make a registered version, by default the candidate, the champion of its model."""
    log_errors_plainly()
    return make_champion(model_name, version)
