"""What a re-fusion did: with each new source, and in the registry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.landing.quarantine import State
from tasks.registry.register import FusionResult

FUSED: Literal["fused"] = "fused"
DUPLICATE: Literal["duplicate"] = "duplicate"
QUARANTINED: Literal["quarantined"] = "quarantined"
WAITING: Literal["waiting"] = "waiting"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class TakenIn(_Record):
    """What became of one new source."""

    name: str
    state: State | Literal["waiting"] = Field(description="waiting: not decided, the next re-fusion tries again.")
    reason: str


class Verdict(_Record):
    """What the gates say of a fused model, and whether it became the champion."""

    model_name: str
    version: str
    passed: bool
    reason: str
    promoted: bool = False

    @property
    def of_source(self) -> tuple[State, str]:
        """What becomes of the source that the model was fused with."""
        if self.passed:
            return FUSED, f"in version {self.version}"
        return QUARANTINED, f"version {self.version} with it did not pass the gates: {self.reason}"


class RefusionResult(_Record):
    """What a re-fusion did."""

    recipe: str
    sources: tuple[TakenIn, ...] = ()
    fusion: FusionResult | None = Field(None, description="The last fused model that was registered.")
    verdicts: tuple[Verdict, ...] = Field((), description="One for each fused model, in order.")

    def in_state(self, state: str) -> tuple[TakenIn, ...]:
        """The new sources in one state."""
        return tuple(item for item in self.sources if item.state == state)

    def after(self, outcome: TakenIn) -> RefusionResult:
        """This, and what became of one more source."""
        return self.model_copy(update={"sources": (*self.sources, outcome)})

    def registered(self, fusion: FusionResult, verdict: Verdict) -> RefusionResult:
        """This, and one more fused model."""
        return self.model_copy(update={"fusion": fusion, "verdicts": (*self.verdicts, verdict)})

    def judged(self, verdict: Verdict) -> RefusionResult:
        """This, with the last word on one of the fused models."""
        others = tuple(verdict if one.version == verdict.version else one for one in self.verdicts)
        return self.model_copy(update={"verdicts": others})

    @property
    def accepted(self) -> Verdict | None:
        """The last verdict that was good."""
        return next((verdict for verdict in reversed(self.verdicts) if verdict.passed), None)
