"""Progress with time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Called with (done, total); what long work reports to.
Advance = Callable[[int, int], None]

PLAIN_LINE_SECONDS = 15.0


def ignore_progress(done: int, total: int) -> None:
    """Report to nobody."""


@contextmanager
def show_progress(title: str, unit: str) -> Iterator[Advance]:
    """Yield a callback ``advance(done, total)`` that shows rate and time left on standard error.

    On a terminal it draws a bar; elsewhere it prints at most one line every 15 s, so that logs stay readable.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    yield _plain_lines(title, unit)


def _plain_lines(title: str, unit: str) -> Advance:
    started = time.monotonic()
    last_line = started

    def advance(done: int, total: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line < PLAIN_LINE_SECONDS or not done:
            return
        last_line = now
        rate = done / (now - started)
        left = (total - done) / rate
        print(f"{title}: {done:,}/{total:,} {unit}, {rate:,.1f} {unit}/s, {left:,.0f} s left", file=sys.stderr)

    return advance
