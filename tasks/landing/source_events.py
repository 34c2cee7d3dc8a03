"""Telling Prefect that a source has landed; the event only wakes re-fusion up, which lists for itself what is there."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.events.schemas.events import Resource

from fusion_core.errors import FusionError, first_line
from tasks.settings import Settings

SOURCE_LANDED = "fuseline.source.landed"


def announce_source(recipe: str, name: str, reference: str) -> None:
    """Emit ``fuseline.source.landed`` for a recipe, and return once Prefect's server has taken it.

    A deployment starts on it with a trigger that expects this event and matches ``fuseline.recipe.<name>`` as
    ``prefect.resource.id``; the recipe's name in the payload is all that it needs to be told.

    Raises
    ------
    FusionError
        There is no server of Prefect's own to tell, or it does not take the event.
    """
    if not Settings().prefect_api_url:
        raise FusionError(
            "An event needs a Prefect server whose deployments listen; set PREFECT_API_URL, or let the fusion run here."
        )
    event = Event(
        event=SOURCE_LANDED,
        resource=Resource(
            {
                "prefect.resource.id": f"fuseline.recipe.{recipe}",
                "prefect.resource.name": recipe,
                "fuseline.source": name,
            }
        ),
        payload={"recipe": recipe, "source": name, "reference": reference},
    )
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except Exception as error:  # Prefect's own, and those of the HTTP client beneath it
        raise FusionError(
            f"Prefect did not take the event that source {name!r} has landed ({first_line(error)}); check "
            "PREFECT_API_URL and that the server runs."
        ) from error
