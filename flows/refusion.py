"""Re-fusion: a recipe that has a new source; everything else is found in the store."""

from __future__ import annotations

from prefect import flow

from flows.fusechat import fusechat
from fusion_core.config import FusionConfig
from tasks.register import FusionResult


@flow(name="refusion", flow_run_name="{config.name}")
def refusion(config: FusionConfig) -> FusionResult:
    """Fuse again after a source was added: only its extraction, alignment and target, and the merge, are computed."""
    return fusechat(config)
