"""Inputs by the thousand: mutations of valid ones, and what a reader may do with them.

A reader gives a right result or refuses with an error of Fuseline's own. Everything else is a failure: another
exception, an input that takes longer than `SECONDS_AN_INPUT`, memory that grows, a file written outside its folder.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion_core.errors import FusionError

SECONDS_AN_INPUT = 10.0
MOST_GROWTH_BYTES = 768 << 20
FAST, SLOW = 50, 10_000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATHS_OF_EVENTS = {"os.mkdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,), "os.remove": (0,)}

counts = pytest.mark.parametrize("count", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])

Read = Callable[[Any], object]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


class OutsideError(Exception):
    """A file was written outside the folder it belongs to."""


_inside: list[Path] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        paths = [arguments[0]]
    elif event == "os.remove" and arguments[1] != -1:
        return  # a name inside a folder that was opened before
    else:
        paths = [arguments[place] for place in PATHS_OF_EVENTS.get(event, ())]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            whole = Path(os.path.abspath(os.fsdecode(path)))
            if not any(whole.is_relative_to(folder) for folder in (*_inside, Path("/dev"))):
                raise OutsideError(f"{event} {whole}")


sys.addaudithook(_watch)


@contextmanager
def writing_only_in(*folders: Path) -> Iterator[None]:
    """Fail when Python writes, makes, moves or removes anything outside the folders."""
    _inside.extend(folder.resolve() for folder in folders)
    try:
        yield
    finally:
        _inside.clear()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the block when it takes too long."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"an input took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail when the process's peak memory has grown by more than a few large inputs explain."""
    before = _peak_bytes()
    yield
    grown = _peak_bytes() - before
    assert grown < MOST_GROWTH_BYTES, f"peak memory grew by {grown / 1e6:,.0f} MB"


def tried(read: Read, given_input: Any) -> bool:
    """Give a reader one input; say whether it took it."""
    with time_limit(SECONDS_AN_INPUT):
        try:
            read(given_input)
            return True
        except FusionError as error:
            message = str(error)
            assert message.strip() and "Traceback" not in message
            return False


def fuzz(count: int, make: Callable[[random.Random], Any], read: Read, *folders: Path) -> None:
    """Give a reader as many made inputs, each of a seed of its own; both kinds of answers must occur."""
    taken = 0
    with bounded_memory(), writing_only_in(*folders):
        for seed in range(count):
            made = make(random.Random(seed))
            try:
                taken += tried(read, made)
            except Exception as error:
                raise AssertionError(f"input {seed}: {made!r:.2000}") from error
    assert 0 < taken < count, f"{taken} of {count} inputs were taken: the mutations are all too mild, or too wild"


def fuzz_values(count: int, strategy: st.SearchStrategy[Any], read: Read, *folders: Path) -> None:
    """Give a reader as many values that hypothesis draws."""

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(value: Any) -> None:
        tried(read, value)

    with bounded_memory(), writing_only_in(*folders):
        run()


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change a valid file in one to six places, or not at all."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        place = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, 1000))
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = rng.randbytes(length)
        elif kind == 4:
            changed[place:place] = changed[max(0, place - length) : place] * rng.choice((1, 2, 50))
        elif kind == 5:
            number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1))
            changed[place : place + 8] = number.to_bytes(8, "little")
        else:
            del changed[place:]
    return bytes(changed)


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.5, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "a", "\0", "\n", "null", "nan", "inf", "1e999", "-1", "0"),
    *("../../outside", "/outside", "..", ".", "~", "~nobody-of-this-name/x", "a/../../outside", "..\\outside", "C:\\x"),
    *("{0.__class__}", "{x!r:>99999999}", "%s%n", "${jndi}", "'; DROP TABLE runs; --", "<script>", "\ud800", "\u202e"),
    *("9" * 5000, "x" * 100_000, "é" * 300, [], {}, [[]], [{}], {"": None}, [None], ["a", 1], {"a": {"b": {}}}),
)


def nested(rng: random.Random) -> Any:
    """Return lists or mappings inside each other, deeper than Python goes."""
    value: Any = 0
    for _ in range(rng.choice((3, 50, 300, 900, 980, 2000))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def nasty(rng: random.Random) -> Any:
    """Return a value that nobody expects."""
    if rng.random() < 0.03:
        return nested(rng)
    return copy.deepcopy(rng.choice(NASTY))


def nasty_text(rng: random.Random) -> str:
    """Return a text that nobody expects."""
    return str(rng.choice([value for value in NASTY if not isinstance(value, list | dict)]))


def json_bytes(value: Any) -> bytes:
    """Write a value as JSON, lone surrogates and all; what is nested too deeply becomes brackets without an end."""
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 5000


def mutated_value(rng: random.Random, value: Any) -> Any:
    """Change a valid JSON-like value in one to four places, or not at all."""
    # What is nested too deeply to be copied was made for this one input.
    with suppress(RecursionError):
        value = copy.deepcopy(value)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return nasty(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind < 4:
            holder[key] = nasty(rng)
        elif kind == 4:
            del holder[key]
        elif kind == 5 and isinstance(holder, dict):
            holder[nasty_text(rng)[:200]] = holder.pop(key)
        elif kind == 6:
            holder[key] = _copied(rng.choice(places)[0])
        elif isinstance(holder, list):
            holder.append(_copied(holder[key]))
        else:
            holder[rng.choice(("name", "path", "id", "extra"))] = nasty(rng)
    return value


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return []


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        node = waiting.pop()
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in list(inner):
            yield node, key
            waiting.append(child)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
