"""The MLflow run of a sweep, its shared work, and the files it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from fusion_core.report.sweep_table import SweepRow, as_csv, as_markdown, plot, summarize_sweep, sweep_rows
from fusion_core.sweeps import Cell
from tasks.addresses import FUSED
from tasks.plan import stage_addresses
from tasks.registry.register import FusionResult
from tasks.resolve import resolve_fusion
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
from tasks.store.publication import find_artifact
from tasks.store.workplace import open_workplace

TABLE, ROWS, PLOT = "sweep.md", "sweep.csv", "sweep.png"


class SharedWork(BaseModel):
    """How many stages a sweep has, and how few of them it computes."""

    model_config = ConfigDict(frozen=True)

    fusions: int
    stages: int
    different: int
    found: int

    def __str__(self) -> str:
        return (
            f"{self.fusions} fusions with {self.stages} stages in all: {self.different} different ones, of which "
            f"{self.found} are found in the store"
        )


class SweepResult(BaseModel):
    """What a sweep leaves behind."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    work: SharedWork
    run: str


def shared_work(cells: Sequence[Cell]) -> SharedWork:
    """Count the stages of all fusions of a sweep, each address once."""
    store = open_workplace().store
    addresses = [list(stage_addresses(resolve_fusion(cell.config)).values()) for cell in cells]
    different = {address for of_one in addresses for address in of_one}
    found = sum(find_artifact(store, address) is not None for address in different)
    return SharedWork(
        fusions=len(cells), stages=sum(len(one) for one in addresses), different=len(different), found=found
    )


@contextmanager
def sweep_run(name: str, cells: Sequence[Cell]) -> Iterator[str]:
    """Open the MLflow run that holds all fusions of a sweep; it ends FAILED when the flow raises."""
    tracking = _tracking(cells)
    run = tracking.start_run(f"sweep {name}", {"fuseline.stage": "sweep"})
    with tracking.ending(run):
        yield run


def nest(cell: Cell, result: FusionResult, run: str) -> list[SweepRow]:
    """Put a fusion's run below the sweep's, and return its scores."""
    tracking = _tracking([cell])
    tracking.log(
        result.fusion_run,
        tags={"mlflow.parentRunId": run, "fuseline.variant": cell.label, "fuseline.seed": str(cell.seed)},
    )
    scores = result.files.summary.scores
    return [] if scores is None else sweep_rows(cell.label, cell.seed, scores)


def write_sweep(name: str, cells: Sequence[Cell], rows: Sequence[SweepRow], work: SharedWork, run: str) -> SweepResult:
    """Write table, rows and plot of the fused models, to a folder and to the sweep's run."""
    folder = Settings().home / "sweeps" / f"{name}-{run[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarize_sweep(rows, FUSED)
    table = as_markdown(summary)
    (folder / TABLE).write_text(f"{work}.\n\n{table}", encoding="utf-8")
    (folder / ROWS).write_text(as_csv(rows), encoding="utf-8")
    plot(summary, name).savefig(folder / PLOT, dpi=150)
    tracking = _tracking(cells)
    for file in (TABLE, ROWS, PLOT):
        tracking.log_file(run, folder / file)
    create_markdown_artifact(f"{work}.\n\n{table}", key="sweep", description=f"Fused models of the sweep {name}.")
    return SweepResult(folder=folder, work=work, run=run)


def _tracking(cells: Sequence[Cell]) -> Tracking:
    return open_workplace().tracking(cells[0].config.registry.experiment)


conclude_sweep = task(name="conclude", task_run_name="table and plot", cache_policy=NO_CACHE, persist_result=False)(
    write_sweep
)
