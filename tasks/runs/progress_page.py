"""Progress of a stage as an artifact of its task in Prefect's pages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from fusion_core.errors import first_line
from fusion_core.progress import listen_to_progress, rate_and_time_left

SECONDS_BETWEEN_UPDATES = 5.0

log = logging.getLogger("prefect.task_runs")


class ProgressPage:
    """Shows the newest progress of the running task; what Prefect's server refuses is said once and then let be."""

    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}
        self._last: dict[str, float] = {}
        self._reachable = True

    def show(self, title: str, unit: str, done: int, total: int, seconds: float) -> None:
        """Create or update the artifact of this title, at most every five seconds and at the end."""
        now = time.monotonic()
        recent = now - self._last.get(title, -SECONDS_BETWEEN_UPDATES) < SECONDS_BETWEEN_UPDATES
        if not self._reachable or not total or (recent and done < total):
            return
        self._last[title] = now
        share = 100.0 * done / total
        text = f"{title}: {rate_and_time_left(unit, done, total, seconds)}"
        try:
            if title in self._artifacts:
                update_progress_artifact(self._artifacts[title], progress=share, description=text)
            else:
                made = create_progress_artifact(progress=share, description=text)
                assert isinstance(made, UUID)
                self._artifacts[title] = made
        except Exception as error:  # whatever the server or the way to it does; the work itself goes on
            self._reachable = False
            log.warning("Prefect takes no more progress of %s (%s); the work goes on.", title, first_line(error))


@contextmanager
def progress_page() -> Iterator[None]:
    """Show all progress made within the block in Prefect's pages."""
    with listen_to_progress(ProgressPage().show):
        yield
