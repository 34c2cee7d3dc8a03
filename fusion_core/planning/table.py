"""A plan as a table on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion_core.planning.plan import Plan, PlanRow
from fusion_core.report.formats import format_bytes, format_count, format_seconds

STATUS_STYLES = {"cached": "green", "compute": "yellow", "unknown": "red"}
UNKNOWN = "?"
# Runnable processes per thread above which a plan says so.
BUSY = 1.5
COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("dial.", "dialogues", format_count),
    ("tokens", "tokens", format_count),
    ("posit.", "positions", format_count),
    ("FLOPs", "flops", format_count),
    ("written", "bytes", format_bytes),
    ("memory", "memory_bytes", format_bytes),
    ("time", "seconds", format_seconds),
)
# What a stage has; other columns stay empty rather than unknown.
STAGE_FIELDS = {
    "prepare": {"dialogues"},
    "extract": {"dialogues", "tokens", "positions", "flops", "bytes", "memory_bytes", "seconds"},
    "fuse": {"dialogues", "positions", "bytes", "seconds"},
    "train": {"dialogues", "tokens", "positions", "flops", "bytes", "memory_bytes", "seconds"},
    "merge": {"bytes", "memory_bytes", "seconds"},
    "evaluate": {"dialogues", "tokens", "positions", "flops", "memory_bytes", "seconds"},
}


def plan_table(plan: Plan) -> RenderableType:
    """Return what a terminal prints for a plan: its rows, totals of what is not cached, and what is not known."""
    # Without lines and with one column for stage and subject a row fits a terminal of 80 columns.
    table = Table(title=f"Plan of {plan.name}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("part", overflow="fold", min_width=16)
    table.add_column("status", no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in plan.rows:
        table.add_row(
            Text(f"{row.stage} {row.subject}"),
            Text(row.status, style=STATUS_STYLES[row.status]),
            *(_cell(row, field, write) for _, field, write in COLUMNS),
        )
    return Group(table, *(Text(line) for line in _totals(plan)), *_gaps(plan))


def _cell(row: PlanRow, field: str, write: Callable[[float], str]) -> str:
    if field not in STAGE_FIELDS[row.stage]:
        return ""
    value = getattr(row, field)
    return UNKNOWN if value is None else write(value)


def _totals(plan: Plan) -> list[str]:
    cached = sum(row.status == "cached" for row in plan.rows)
    lines = [f"{cached} of {len(plan.rows)} parts are in the store already. {_costs(plan)}"]
    lines += [
        f"Device: {plan.device.name}, {format_bytes(plan.device.memory_bytes)}; matrix products measured at "
        + ", ".join(
            f"{format_count(rate, 'FLOP/s')} in {dtype}" for dtype, rate in plan.device.flops_per_second.items()
        )
        + ".",
    ]
    if plan.device.busy_with > BUSY:
        lines.append(
            f"The machine is busy with other work ({plan.device.busy_with:.1f} processes for each thread), so the "
            "measured speed is uncertain, and everything takes longer than said while that lasts."
        )
    if plan.estimated:
        lines.append("Tokens and positions are estimates from a sample of the dialogues.")
    if plan.memory_bytes > plan.device.memory_bytes:
        lines.append(
            f"The peak needs more than the {format_bytes(plan.device.memory_bytes)} of this device; take a larger one "
            "or several, or lower `batch_tokens` and `micro_batch_tokens` where they are what is large."
        )
    return lines


def _costs(plan: Plan) -> str:
    costly = [row for row in plan.rows if row.status != "cached" and "flops" in STAGE_FIELDS[row.stage]]
    known = [row for row in costly if row.seconds is not None]
    if costly and not known:
        return "What the rest costs cannot be estimated."
    return (
        f"To compute: {'' if len(known) == len(costly) else 'at least '}{format_count(plan.total('flops'), 'FLOPs')}, "
        f"{format_seconds(plan.total('seconds'))}, {format_bytes(plan.total('bytes'))} written, "
        f"{format_bytes(plan.memory_bytes)} of memory at the peak."
    )


def _gaps(plan: Plan) -> list[Text]:
    return [Text(f"Not known: {line}", style="red") for line in plan.unknown]
