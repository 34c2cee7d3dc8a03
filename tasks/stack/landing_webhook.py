"""MLflow's webhook that tells the receiver of registered models, so that a landed source starts re-fusion by itself."""

from __future__ import annotations

from mlflow.entities.webhook import Webhook, WebhookEvent, WebhookEventStr
from mlflow.tracking import MlflowClient

from fusion_core.errors import ConfigError
from tasks.runs.tracking import plain_errors
from tasks.settings import Settings

NAME = "fuseline-landed-sources"
EVENTS: tuple[WebhookEventStr, ...] = ("model_version.created", "model_version_tag.set")


def create_landing_webhook(settings: Settings, receiver_url: str) -> None:
    """Create the webhook, or give an earlier one this receiver's address and secret; switched off, it stays off.

    Parameters
    ----------
    settings : Settings
        With the secret that MLflow is to sign with.
    receiver_url : str
        Address at which MLflow reaches the receiver.

    Raises
    ------
    ConfigError
        There is no secret.
    TrackingError
        MLflow refuses.
    """
    if settings.webhook_secret is None:
        raise ConfigError("MLflow's webhook needs a secret; set FUSELINE_WEBHOOK_SECRET, for the receiver too.")
    secret, url = settings.webhook_secret.get_secret_value(), f"{receiver_url}/mlflow"
    events: list[WebhookEventStr | WebhookEvent] = [WebhookEvent.from_str(event) for event in EVENTS]
    client = MlflowClient(settings.tracking_uri)
    with plain_errors(settings):
        known = [webhook for webhook in _all_webhooks(client) if webhook.name == NAME]
        if known:
            client.update_webhook(known[0].webhook_id, url=url, events=events, secret=secret)
        else:
            client.create_webhook(NAME, url, events, description="Tells Fuseline of registered sources.", secret=secret)


def _all_webhooks(client: MlflowClient) -> list[Webhook]:
    found: list[Webhook] = []
    token = None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found
