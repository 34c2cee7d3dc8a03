"""Taking turns on devices: stages that use one hold a slot of a global concurrency limit of Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from tasks.servers import is_server_away
from tasks.settings import Settings

LEASE_SECONDS = 60.0
# A server that many runs wait at answers some of them that it is too busy; each try has the client's own repetitions.
TRIES = 20
PAUSE_SECONDS = (5.0, 15.0)


def takes_turns(settings: Settings) -> bool:
    """Say whether the devices are shared out by slots."""
    return bool(settings.device_limit and settings.prefect_api_url)


def device_slot(settings: Settings) -> AbstractContextManager[None]:
    """Return what a stage that uses a device must hold while it computes; nothing where no limit is set.

    It is taken around the computation alone, so what is found in the store never queues. A slot of a killed process
    comes back by itself when its lease ends, within a minute.
    """
    return _held_slot(settings.device_limit) if takes_turns(settings) else nullcontext()


@contextmanager
def _held_slot(limit: str) -> Iterator[None]:
    # Prefect takes a second to import, and most commands on a single stage never need it.
    from prefect.concurrency.sync import concurrency

    tries = Retrying(
        retry=retry_if_exception(is_server_away),
        stop=stop_after_attempt(TRIES),
        wait=wait_random(*PAUSE_SECONDS),
        reraise=True,
    )
    with ExitStack() as stack:
        for attempt in tries:
            with attempt:
                # A lease that cannot be renewed in time, with the server away for a while, must not end a training.
                stack.enter_context(
                    concurrency(limit, occupy=1, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False)
                )
        yield
