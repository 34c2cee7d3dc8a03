"""A person's word on a candidate, given as a form in Prefect's pages while the flow waits."""

from __future__ import annotations

from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from tasks.registry.promotion import Candidacy

SECONDS_AN_HOUR = 3600


class Approval(RunInput):
    """The form."""

    approve: bool = Field(False, description="Make this version the champion.")
    name: str = Field("", description="Who decides; kept with the version.")
    reason: str = Field("", description="Why; kept with the version where it is declined.")


def ask_a_person(candidacy: Candidacy) -> Approval:
    """Pause the flow until somebody resumes it with an answer; no answer in time declines."""
    hours = candidacy.config.approval_timeout_hours
    form = Approval.with_initial_data(
        description=f"Shall version {candidacy.version} become champion of {candidacy.model_name}?\n\n"
        + candidacy.decision.markdown()
    )
    try:
        return pause_flow_run(wait_for_input=form, timeout=round(hours * SECONDS_AN_HOUR), poll_interval=2)
    except FlowPauseTimeout:
        return Approval(approve=False, reason=f"nobody answered within {hours:g} hours")
