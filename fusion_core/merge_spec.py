"""What a merge is asked to do."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MergeSpec(BaseModel):
    """How targets are merged into the fused model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["varm", "linear", "task_arithmetic", "slerp", "ties", "dare", "sce"] = Field(
        "varm", description="Merge method; varm is FuseChat's own."
    )
    granularity: Literal["model", "layer", "module", "matrix", "parameter"] = Field(
        "matrix", description="What shares one merge weight (paper: matrix)."
    )
