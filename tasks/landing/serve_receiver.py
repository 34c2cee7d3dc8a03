"""Running the receiver of MLflow's webhooks as a server of its own.

Run as ``python -m tasks.landing.serve_receiver HOST PORT``, or as the command ``fuseline receiver``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import uvicorn

from fusion_core.errors import ConfigError, FusionError
from tasks.landing.head_timeout import HeadTimeoutProtocol
from tasks.landing.source_events import announce_source
from tasks.landing.webhook_deliveries import Deliveries
from tasks.landing.webhook_receiver import TOLERANCE_SECONDS, Receiver, make_application
from tasks.runs.tracking import Tracking, plain_errors
from tasks.settings import Settings

SHORTEST_SECRET = 16
# MLflow delivers one after the other; whoever opens more wants something else.
MOST_CONNECTIONS = 256


def serve_receiver(host: str, port: int) -> None:
    """Serve until it is stopped.

    Raises
    ------
    ConfigError
        There is no secret, it is short, or there is no Prefect server to tell.
    """
    settings = Settings()
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret is not None else ""
    if len(secret) < SHORTEST_SECRET:
        raise ConfigError(
            f"The receiver needs the secret of MLflow's webhook in FUSELINE_WEBHOOK_SECRET, {SHORTEST_SECRET} "
            f"characters or more, found {len(secret)}; set it here and at MLflow's webhook alike."
        )
    if not settings.prefect_api_url:
        raise ConfigError("The receiver tells a Prefect server of sources; set PREFECT_API_URL.")

    def read_tags(name: str, version: str) -> Mapping[str, str]:
        with plain_errors(settings):
            tags: Mapping[str, str] = Tracking(settings, "fuseline").client.get_model_version(name, version).tags
            return tags

    deliveries = Deliveries(settings.home / "receiver" / "deliveries.db", keep_seconds=4 * TOLERANCE_SECONDS)
    application = make_application(Receiver(secret, deliveries, announce_source, read_tags))
    uvicorn.run(
        application,
        host=host,
        port=port,
        log_level="info",
        http=HeadTimeoutProtocol,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
    )


def main() -> None:
    """Serve at the address of the arguments; a mistake is one sentence on standard error."""
    try:
        serve_receiver(sys.argv[1], int(sys.argv[2]))
    except FusionError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
