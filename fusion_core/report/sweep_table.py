"""What a sweep found: one row for each fusion, model and domain, and a table of means over seeds."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from fusion_core.evaluation.bootstrap import CONFIDENCE
from fusion_core.evaluation.score_table import ScoreTable
from fusion_core.record import Record

MEAN_OF_DOMAINS = "mean"


class SweepRow(Record):
    """The score of one model of one fusion in one domain, in nats per response byte."""

    variant: str
    seed: int
    model: str
    domain: str
    nats_per_byte: float


class SweepCell(Record):
    """Mean over seeds with its 95 % interval; no interval from one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def sweep_rows(variant: str, seed: int, scores: ScoreTable) -> list[SweepRow]:
    """Return a row for each model and domain of one fusion's score table."""
    rows = []
    for row in scores.rows:
        domains = {name: score.nats_per_byte for name, score in row.domains.items()}
        values = {MEAN_OF_DOMAINS: row.mean_of_domains.nats_per_byte} | domains
        rows += [
            SweepRow(variant=variant, seed=seed, model=row.model, domain=domain, nats_per_byte=value)
            for domain, value in values.items()
        ]
    return rows


def over_seeds(values: Sequence[float]) -> SweepCell:
    """Return mean and 95 % interval of Student's t over seeds.

    Parameters
    ----------
    values : sequence of float
        One for each seed.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return SweepCell(mean=mean, low=None, high=None, seeds=len(array))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return SweepCell(mean=mean, low=mean - half, high=mean + half, seeds=len(array))


def summarize_sweep(rows: Sequence[SweepRow], model: str) -> dict[str, dict[str, SweepCell]]:
    """Return variant to domain to mean over seeds, for one model of each fusion."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.model == model:
            values[row.variant][row.domain].append(row.nats_per_byte)
    return {
        variant: {domain: over_seeds(found) for domain, found in domains.items()} for variant, domains in values.items()
    }


def as_csv(rows: Sequence[SweepRow]) -> str:
    """Return every row as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(SweepRow.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return text.getvalue()


def as_markdown(summary: dict[str, dict[str, SweepCell]]) -> str:
    """Return the means as a table, the best of each column in bold."""
    domains = list(dict.fromkeys(domain for cells in summary.values() for domain in cells))
    best = {domain: min(cells[domain].mean for cells in summary.values() if domain in cells) for domain in domains}
    lines = [f"| variant | {' | '.join(domains)} |", "|---|" + "---:|" * len(domains)]
    for variant, cells in summary.items():
        shown = [_shown(cells[domain], best[domain]) if domain in cells else "" for domain in domains]
        lines.append(f"| {variant.replace('|', '/')} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def plot(summary: dict[str, dict[str, SweepCell]], title: str) -> Any:
    """Draw mean and interval of each variant as a matplotlib figure."""
    from matplotlib.figure import Figure

    labels = list(summary)
    cells = [summary[label][MEAN_OF_DOMAINS] for label in labels]
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for place, cell in enumerate(cells):
        if cell.low is not None and cell.high is not None:
            axes.plot([cell.low, cell.high], [place, place], color="tab:blue", linewidth=1.5)
    axes.plot([cell.mean for cell in cells], range(len(cells)), "o", color="tab:blue")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("nats per response byte, mean over domains (lower is better)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _shown(cell: SweepCell, best: float) -> str:
    text = f"{cell.mean:.4f}"
    if cell.mean == best:
        text = f"**{text}**"
    if cell.low is not None:
        text += f" ± {cell.mean - cell.low:.4f}"
    return text
