"""Progress with time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Called with (done, total); what long work reports to.
Advance = Callable[[int, int], None]

# Called with (title, unit, done, total, seconds since the start): another place that shows the same progress.
Listener = Callable[[str, str, int, int, float], None]

PLAIN_LINE_SECONDS = 15.0

_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


def ignore_progress(done: int, total: int) -> None:
    """Report to nobody."""


@contextmanager
def listen_to_progress(listener: Listener) -> Iterator[None]:
    """Also tell ``listener`` of all progress shown within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def show_progress(title: str, unit: str) -> Iterator[Advance]:
    """Yield a callback ``advance(done, total)`` that shows rate and time left on standard error.

    On a terminal it draws a bar; elsewhere it prints at most one line every 15 s, so that logs stay readable.
    """
    listener = _listener.get()
    started = time.monotonic()
    with _bar(title, unit) if sys.stderr.isatty() else nullcontext(_plain_lines(title, unit)) as show:
        if listener is None:
            yield show
            return

        def advance(done: int, total: int) -> None:
            show(done, total)
            listener(title, unit, done, total, time.monotonic() - started)

        yield advance


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def rate_and_time_left(unit: str, done: int, total: int, seconds: float) -> str:
    """Say how fast work goes and how long it still takes, such as ``10/40 steps, 2.0 steps/s, 15 s left``."""
    if not done or seconds <= 0:
        return f"{done:,}/{total:,} {unit}"
    rate = done / seconds
    return f"{done:,}/{total:,} {unit}, {rate:,.1f} {unit}/s, {(total - done) / rate:,.0f} s left"


def _plain_lines(title: str, unit: str) -> Advance:
    started = time.monotonic()
    last_line = started

    def advance(done: int, total: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line < PLAIN_LINE_SECONDS or not done:
            return
        last_line = now
        print(f"{title}: {rate_and_time_left(unit, done, total, now - started)}", file=sys.stderr)

    return advance
