"""Processes that go on after the command that started them, found again by their record."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from fusion_core.errors import FusionError
from tasks.stack.folder import write_private
from tasks.store.local_files import disk_errors
from tasks.store.owners import process_lives


class ProcessRecord(BaseModel):
    """Which process a service is."""

    model_config = ConfigDict(frozen=True)

    pid: PositiveInt
    started: float


def start_process(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, record: Path
) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to ``log``, and record it.

    Raises
    ------
    FusionError
        If the program cannot be started.
    """
    with disk_errors(f"Writing {log}"):
        folder.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    with output:
        try:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise FusionError(f"{command[0]} cannot be started ({error.strerror}); install it again.") from error
    made = ProcessRecord(pid=process.pid, started=psutil.Process(process.pid).create_time())
    write_private(record, made.model_dump_json() + "\n")
    return made


def find_process(record: Path) -> psutil.Process | None:
    """Return the recorded process if it still runs."""
    try:
        known = ProcessRecord.model_validate_json(record.read_bytes())
        return psutil.Process(known.pid) if process_lives(known.pid, known.started) else None
    except (OSError, OverflowError, ValidationError, psutil.Error):
        return None


def stop_process(record: Path, patience_seconds: float) -> bool:
    """End the recorded process and everything it started; returns whether it ran.

    It is asked first; what still runs after ``patience_seconds`` is killed.
    """
    process = find_process(record)
    if process is not None:
        family = [process, *process.children(recursive=True)]
        if patience_seconds > 0:
            _signal_group(process.pid, signal.SIGTERM)
            psutil.wait_procs(family, timeout=patience_seconds)
        _signal_group(process.pid, signal.SIGKILL)
        for member in family:
            if member.is_running():
                member.kill()
        psutil.wait_procs(family, timeout=10)
    record.unlink(missing_ok=True)
    return process is not None


def last_lines(log: Path, count: int = 3) -> str:
    """Return the end of a log as one line, for an error message."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    return " / ".join(line.strip() for line in lines[-count:] if line.strip()) or "an empty log"


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return
