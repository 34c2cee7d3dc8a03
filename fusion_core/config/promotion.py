"""What a registered version must show before it becomes champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from fusion_core.config_section import Section

Rival = Literal["champion", "pivot", "plain_sft"]
Confidence = Annotated[float, Field(gt=0.0, lt=1.0)]
METRIC_DESCRIPTION = (
    "nats_per_byte (over all held-out bytes), nats_per_byte/mean_of_domains, nats_per_byte/DOMAIN, or any other score "
    "of the run, such as mt_bench/overall. Fewer nats are better; of every other score more is."
)


class MustBeat(Section):
    """The candidate has to be better than a rival on one metric."""

    rival: Rival = Field(
        "champion",
        description="Whom to beat: the champion (the pivot while there is none), the pivot, or plain fine-tuning.",
    )
    metric: str = Field("nats_per_byte", min_length=1, description=METRIC_DESCRIPTION)
    margin: float = Field(0.0, ge=0.0, description="By how much, in the metric's own unit.")
    confidence: Confidence | None = Field(
        0.95,
        description="The difference's central interval of this share must lie wholly beyond the margin; null compares "
        "the means alone. Held-out scores are drawn pair by pair over dialogues.",
    )


class MustNotDrop(Section):
    """The candidate may not be much worse than a rival in any part of a metric."""

    rival: Rival = Field("champion", description="Compared with whom; the pivot while there is no champion.")
    metric: str = Field(
        "nats_per_byte",
        min_length=1,
        description="Its parts are looked at one by one: nats_per_byte has the domains, mt_bench its categories.",
    )
    limit: float = Field(0.0, ge=0.0, description="Largest loss of the mean in any part, in the metric's own unit.")


class PromotionConfig(Section):
    """The gates between a candidate and the alias `champion`, and who has the last word."""

    must_beat: tuple[MustBeat, ...] = Field((MustBeat(),), description="What the candidate has to be better at.")
    must_not_drop_more_than: tuple[MustNotDrop, ...] = Field(
        (), description="Where the candidate may not be worse, domain by domain or category by category."
    )
    required: tuple[str, ...] = Field(
        (), description="Metrics, or families of them such as mt_bench, that the candidate must have been scored on."
    )
    approval: Literal["automatic", "manual"] = Field(
        "automatic", description="manual: a person approves or refuses what passed the gates, in Prefect's UI or here."
    )
    approval_timeout_hours: PositiveFloat = Field(
        24.0,
        le=8760.0,
        description="approval: manual. How long the flow waits for an answer before the candidate is refused.",
    )

    @model_validator(mode="after")
    def _no_idle_timeout(self) -> PromotionConfig:
        if self.approval == "automatic" and "approval_timeout_hours" in self.model_fields_set:
            raise ValueError("`approval_timeout_hours` matters only with `approval: manual`; remove it")
        return self
