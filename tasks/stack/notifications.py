"""Telling people of failed and crashed runs: a Prefect automation with a webhook block, off until configured."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from prefect.automations import Automation, EventTrigger
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import Posture
from prefect.events.schemas.events import ResourceSpecification
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
    asyncio.run(_create())


async def _create() -> None:
    try:
        block: Any = await Webhook.aload(NAME)
        block_id = block._block_document_id
    except ValueError:
        block_id = await Webhook(method="POST", url=SecretStr(PLACEHOLDER)).asave(NAME)
    try:
        await Automation.aread(name=NAME)
    except (ValueError, ObjectNotFound):
        automation = Automation(
            name=NAME,
            description=f"Posts failed and crashed runs. Put an address into the block {NAME!r}, then switch this on.",
            enabled=False,
            trigger=EventTrigger(
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
                match=ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"}),
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[CallWebhook(block_document_id=block_id, payload=MESSAGE)],
        )
        await automation.acreate()
