"""Whether the servers that the environment names answer, asked before anything relies on them."""

from __future__ import annotations

import httpx

from fusion_core.errors import FusionError, TrackingError, first_line
from tasks.settings import Settings

CONNECT_SECONDS = 10.0
# A server that is there has this long to answer: it is busy when many runs begin at once.
ANSWER_SECONDS = 180.0


def check_servers(settings: Settings) -> None:
    """Make sure that MLflow and Prefect answer where they are servers of their own.

    Raises
    ------
    TrackingError
        If MLflow does not answer.
    FusionError
        If Prefect does not answer.
    """
    check_mlflow(settings)
    check_prefect(settings)


def is_server_away(error: BaseException) -> bool:
    """Say whether an error, or what caused it, is that of a client whose server does not answer, or fails itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (httpx.TransportError, ConnectionError)):
            return True
        if isinstance(seen, httpx.HTTPStatusError) and seen.response.is_server_error:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def check_mlflow(settings: Settings) -> None:
    """Ask MLflow's server for its health; an embedded database is not asked."""
    if settings.tracking_uri.startswith(("http://", "https://")):
        _require_answer("MLflow", "MLFLOW_TRACKING_URI", f"{settings.tracking_uri.rstrip('/')}/health", TrackingError)


def check_prefect(settings: Settings) -> None:
    """Ask Prefect's server for its health; the ephemeral one is not asked."""
    if settings.prefect_api_url:
        _require_answer("Prefect", "PREFECT_API_URL", f"{settings.prefect_api_url.rstrip('/')}/health", FusionError)


def _require_answer(server: str, variable: str, url: str, kind: type[FusionError]) -> None:
    # The servers' own clients retry for minutes, and an address may carry a password, so it stays out of the message.
    try:
        answer = httpx.get(url, timeout=httpx.Timeout(CONNECT_SECONDS, read=ANSWER_SECONDS))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise kind(
            f"{server} does not answer at the address in {variable} ({first_line(error)}); start it or correct the "
            "address."
        ) from error
    if answer.is_server_error:
        raise kind(
            f"What answers at the address in {variable} is no healthy {server} server (status {answer.status_code}); "
            "start it or correct the address."
        )
