"""Telling people of failed and crashed runs: a Prefect automation with a webhook block, off until configured."""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation, EventTrigger
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

NAME = "fuseline-failures"
PLACEHOLDER = "https://example.invalid/put-your-webhook-here"
MESSAGE = (
    "{{ flow.name }} / {{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }} "
    "{{ flow_run|ui_url }}"
)


def create_failure_notification() -> None:
    """Create webhook block and automation where they are missing; what a person changed in them stays."""
    try:
        block_id = Webhook.load(NAME, _sync=True)._block_document_id
    except ValueError:
        block_id = Webhook(method="POST", url=SecretStr(PLACEHOLDER)).save(NAME, _sync=True)
    try:
        Automation.read(name=NAME, _sync=True)
    except (ValueError, ObjectNotFound):
        Automation(
            name=NAME,
            description=f"Posts failed and crashed runs. Put an address into the block {NAME!r}, then switch this on.",
            enabled=False,
            trigger=EventTrigger(
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[CallWebhook(block_document_id=block_id, payload=MESSAGE)],
        ).create(_sync=True)
