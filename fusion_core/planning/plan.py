"""A plan: every unit of work with what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fusion_core.planning.throughput import DeviceThroughput
from fusion_core.record import Record

Status = Literal["cached", "compute", "unknown"]


class PlanRow(Record):
    """One unit of work; None where it cannot be known.

    Parameters
    ----------
    stage, subject : str
        Stage is one of prepare, extract, fuse, train, merge, evaluate; subject the model or target it is for.
    status : str
        cached, compute or unknown; ``plan_costs`` leaves 'compute' everywhere, as it does not look into the store.
    dialogues, tokens, positions : int or None
        tokens are passed through a model, once per epoch in training.
    flops : float or None
    seconds : float or None
        On the device of the plan.
    bytes : int or None
        Written to the store.
    memory_bytes : int or None
        Peak, on the device where it has its own memory.
    """

    stage: str
    subject: str
    status: Status = "compute"
    dialogues: int | None = None
    tokens: int | None = None
    positions: int | None = None
    flops: float | None = None
    seconds: float | None = None
    bytes: int | None = None
    memory_bytes: int | None = None


class Plan(Record):
    """All rows in the order of the method, the device they are for, and in plain sentences what is not known."""

    name: str
    device: DeviceThroughput
    rows: tuple[PlanRow, ...]
    estimated: bool
    unknown: tuple[str, ...] = ()

    def with_status(self, status: Mapping[tuple[str, str], Status]) -> Plan:
        """Return the plan with the status of some rows set, by (stage, subject)."""
        rows = [
            row.model_copy(update={"status": status.get((row.stage, row.subject), row.status)}) for row in self.rows
        ]
        return self.model_copy(update={"rows": tuple(rows)})

    def total(self, field: Literal["flops", "seconds", "bytes"]) -> float:
        """Sum a column over what is not cached, as far as it is known."""
        return float(sum(getattr(row, field) or 0 for row in self.rows if row.status != "cached"))

    @property
    def memory_bytes(self) -> int:
        """Largest memory that any row not cached needs, as far as it is known."""
        return max((row.memory_bytes or 0 for row in self.rows if row.status != "cached"), default=0)
