"""Commands about the place: doctor."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table


def doctor() -> None:
    """Check devices, memory, disk, store, MLflow, Prefect and versions; exits 2 when something must be mended."""
    from tasks.doctor import examine

    checks = examine()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        table.add_row(check.subject, "ok" if check.healthy else "MEND", check.found)
    Console(markup=False).print(table)
    if not all(check.healthy for check in checks):
        raise typer.Exit(2)
