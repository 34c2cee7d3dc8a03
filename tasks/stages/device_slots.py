"""Taking turns on devices: stages that use one hold a slot of a global concurrency limit of Prefect."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from tasks.settings import Settings

LEASE_SECONDS = 60.0
USE_A_DEVICE = frozenset({"extract", "train", "evaluate"})


def device_slot(settings: Settings, kind: str) -> AbstractContextManager[None]:
    """Return what a stage must hold while it computes; nothing where no limit is set or no device is used.

    It is taken around the computation alone, so what is found in the store never queues. A slot of a killed process
    comes back by itself when its lease ends, within a minute.
    """
    if not (settings.device_limit and settings.prefect_api_url and kind in USE_A_DEVICE):
        return nullcontext()
    # Prefect takes a second to import, and most commands on a single stage never need it.
    from prefect.concurrency.sync import concurrency

    # A lease that cannot be renewed in time, with the server away for a while, must not end a training.
    return concurrency(
        settings.device_limit, occupy=1, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
    )
