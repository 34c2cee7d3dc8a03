"""What a command does before Prefect and MLflow start."""

from __future__ import annotations

from tasks.environment import make_prefect_home


def make_ready() -> None:
    """Make sure that the servers which the environment names answer."""
    from tasks.servers import check_servers
    from tasks.settings import Settings

    check_servers(Settings())
    make_prefect_home()
