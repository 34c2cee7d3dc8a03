"""Judged scores for a terminal: every figure with its interval, what is missing, and what is within noise."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion_core.evaluation.judged_scores import JudgedDifference, JudgedMean, JudgedTable


def judged_table(table: JudgedTable) -> RenderableType:
    """Return a table with a line for each metric and a column for each model, and lines on how it came about."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("metric")
    for row in table.rows:
        shown.add_column(row.model, justify="right")
    for metric in table.metrics:
        cells = []
        for row in table.rows:
            cells.append(f"{_mean(row.means[metric])}{_difference(row.differences.get(metric))}")
        shown.add_row(metric, *cells)
    return Group(shown, *(Text(line) for line in _notes(table)))


def _mean(mean: JudgedMean) -> str:
    if mean.mean is None:
        return f"none of {mean.missing}"
    interval = "" if mean.low is None or mean.high is None else f" [{mean.low:.2f}, {mean.high:.2f}]"
    missing = f" ({mean.missing} missing)" if mean.missing else ""
    return f"{mean.mean:.2f}{interval}{missing}"


def _difference(difference: JudgedDifference | None) -> str:
    if difference is None or difference.difference is None:
        return ""
    return f"  {difference.difference:+.2f}{' within noise' if difference.within_noise else ''}"


def _notes(table: JudgedTable) -> list[str]:
    costs = table.costs
    notes = [
        f"{table.benchmark}, {table.questions} questions, judged by {table.judge}; in brackets 95 % intervals over "
        "questions."
    ]
    if any(row.differences for row in table.rows):
        notes.append(f"Behind them differences to {table.baseline}; within noise where their interval holds zero.")
    elif table.benchmark != "mt_bench":
        notes.append(f"Compared with {table.baseline}, in percent.")
    notes.append(
        f"{costs.calls:,} calls, {costs.retries:,} retries, {costs.prompt_tokens:,} tokens read and "
        f"{costs.completion_tokens:,} written by the judge; {costs.reused:,} replies were there already."
    )
    for row in table.rows:
        if row.unfinished_answers:
            notes.append(f"{row.model}: {row.unfinished_answers} answers were cut off at the largest number of tokens.")
    return notes
