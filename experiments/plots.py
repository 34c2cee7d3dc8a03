"""The plots of the evidence pages."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.results import Results, summary
from experiments.tables import PIVOT, RATES, WEIGHTS, at_rate
from fusion_core.report.sweep_table import MEAN_OF_DOMAINS, plot

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "plots"


def models(results: Results) -> Figure:
    """A table's trained models and the pivot; sources lie far outside and stand in the table alone."""
    given = {row.label for row in results.rows if row.seed is None} - {PIVOT}
    cells = {label: one for label, one in summary(results).items() if label not in given}
    return plot(cells, textwrap.fill(results.question, 60))


def rates(results: Results) -> Figure:
    """What every λ gains on plain SFT at the same learning rate, a line each rate; λ 1 is plain SFT."""
    found = {(one.label, one.baseline): one.seeds for one in results.differences if one.domain == MEAN_OF_DOMAINS}
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for rate in RATES:
        cells = [found[at_rate(rate, weight), at_rate(rate)] for weight in WEIGHTS]
        means = [1000 * cell.mean for cell in cells]
        (line,) = axes.plot([*WEIGHTS, 1.0], [*means, 0.0], "o-", label=at_rate(rate).partition(", ")[2])
        for weight, cell in zip(WEIGHTS, cells, strict=True):
            if cell.low is not None and cell.high is not None:
                axes.plot([weight, weight], [1000 * cell.low, 1000 * cell.high], color=line.get_color(), alpha=0.5)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("λ, the label's share of the loss; 1 is plain SFT")
    axes.set_ylabel("nats per byte in thousandths, against plain SFT")
    axes.set_title(results.question)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


PLOTS: dict[str, Callable[[Results], Figure]] = {
    "table1": models,
    "table2": models,
    "table3": models,
    "table3_rates": rates,
    "table8": models,
}


def draw(tables: Mapping[str, Results]) -> None:
    """Draw the tables that have a plot."""
    FOLDER.mkdir(exist_ok=True)
    for name, results in tables.items():
        PLOTS[name](results).savefig(FOLDER / f"{name}.png", dpi=90, metadata={"Software": None})
