"""Which process of this machine something belongs to: what a killed one left is told from what is in use."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import uuid
from pathlib import Path

import psutil

TEMPORARY_NAME = re.compile(r"([0-9a-f]{12})-(\d{1,9})-(\d{1,12})-[0-9a-f]{32}")
# Process ids are given out again; a process that began at another second is another one.
SAME_START_SECONDS = 1.0


def host() -> str:
    """Name the set of process ids that this process lives among: machine, boot, and container."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    if boot.is_file():
        parts += [boot.read_text().strip(), os.readlink(namespace)]
    return " ".join(parts)


def start_of_this_process() -> float:
    """Return when this process began, in seconds since the epoch."""
    return _start(os.getpid())


def process_lives(pid: int, started: float) -> bool:
    """Say whether the process of this machine that had an id and began at a moment is still there."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) <= SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def temporary_name() -> str:
    """Return a new name for a file that its maker removes or renames, and that says who the maker is."""
    return f"{_host_digest()}-{os.getpid()}-{start_of_this_process():.0f}-{uuid.uuid4().hex}"


def is_abandoned(name: str) -> bool:
    """Say whether a file was named by `temporary_name` in a process of this machine that lives no more."""
    found = TEMPORARY_NAME.fullmatch(name)
    return found is not None and found[1] == _host_digest() and not process_lives(int(found[2]), float(found[3]))


@functools.lru_cache(1)
def _host_digest() -> str:
    return hashlib.sha256(host().encode()).hexdigest()[:12]


# By process id, because a forked child has its parent's memory and another beginning.
@functools.lru_cache(1)
def _start(pid: int) -> float:
    return float(psutil.Process(pid).create_time())
