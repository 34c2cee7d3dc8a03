"""The MLflow run below which everything of one table logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion_core.config import FusionConfig
from fusion_core.errors import FusionError
from fusion_core.record import Record
from tasks.store.workplace import open_workplace


@contextmanager
def logged_table(recipe: FusionConfig, name: str) -> Iterator[str]:
    """Open a table's run and give its id; it ends as finished, or as failed with what was raised."""
    tracking = open_workplace().tracking(recipe.registry.experiment)
    run = tracking.start_run(f"experiments {name}", {"fuseline.stage": "experiments"})
    with tracking.ending(run):
        yield run


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the command with status 2 and the sentence of an error of Fuseline's own."""
    try:
        yield
    except FusionError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def write(results: Record, output: Path, name: str) -> None:
    """Write a table's figures."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
