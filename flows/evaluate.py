"""Evaluation alone: the held-out scores of a recipe's models and of what was made from them."""

from __future__ import annotations

from prefect import flow

from fusion_core.config import FusionConfig
from fusion_core.evaluation.score_table import ScoreTable
from tasks.resolve import resolve_fusion
from tasks.stage_task import log_errors_plainly
from tasks.stored_fusion import StoredFusion
from tasks.workplace import open_workplace


@flow(name="evaluate", flow_run_name="evaluate {config.name}")
def evaluate(config: FusionConfig) -> ScoreTable:
    """Score a recipe's models and every checkpoint the store holds of it, on the held-out dialogues."""
    log_errors_plainly()
    return StoredFusion(resolve_fusion(config), open_workplace()).evaluate()
