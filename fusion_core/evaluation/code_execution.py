"""Running code that a model wrote, in a child process with limits on time, memory, files and network."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fusion_core.progress import Advance, ignore_progress

CHILD = Path(__file__).with_name("sandbox_child.py")
# Beside the program's own time: starting an interpreter on a busy machine.
START_SECONDS = 5.0
LARGEST_FILE_BYTES = 1 << 20
LARGEST_REPORT_BYTES = 1 << 16
# Of all the files that one program writes together; they lie in memory where the kernel lets it have a disk of its own.
DISK_BYTES = 16 << 20
DISK_FILES = 4096
NOBODY = 65534
OUTCOMES = ("passed", "wrong", "error", "memory limit", "stopped early")


@dataclass(frozen=True)
class Limits:
    """What one program may use: seconds of processor time, as many and a few more of wall time, bytes of memory."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Parameters
    ----------
    outcome : str
        passed: it ran to its end. wrong: an assertion failed. error: it raised. time limit, memory limit: it was
        stopped. stopped early: it ended itself before its end was reached.
    detail : str
        The error's type and message, cut off.
    protections : dict
        What held the program back on this machine: of the network, of the disk, of the user's rights and of files.
    """

    outcome: str
    detail: str = ""
    protections: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end, tests included."""
        return self.outcome == "passed"


def run_programs(
    sources: Sequence[str], limits: Limits, *, workers: int | None = None, progress: Advance = ignore_progress
) -> list[Verdict]:
    """Run Python programs side by side, each as ``run_program`` does; verdicts come in the programs' order.

    Parameters
    ----------
    sources : sequence of str
    limits : Limits
    workers : int, optional
        Programs at once; default: one a processor core.
    progress : Advance
        Called with programs done and their total.
    """
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for verdict in pool.map(lambda source: run_program(source, limits), sources):
            verdicts.append(verdict)
            progress(len(verdicts), len(sources))
    return verdicts


def run_program(source: str, limits: Limits) -> Verdict:
    """Run one Python program in a process of its own and say how it ended.

    The process starts in an empty folder with an empty environment (no secrets), without site packages, in a session
    of its own that is killed as a whole at the end. Where the kernel allows, it has no network at all, writes to its
    folder alone, and no more than 16 MiB in all; ``Verdict.protections`` says what was in force. It may start no other
    process or thread.
    """
    token = secrets.token_hex(16)
    # Bytes a model wrote may hold lone surrogates, which no UTF-8 carries.
    request = {
        "source": source.encode("utf-8", "replace").decode(),
        "token": token,
        "limits": {
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": max(1, round(limits.seconds)),
            "file_bytes": LARGEST_FILE_BYTES,
            "disk_bytes": DISK_BYTES,
            "disk_files": DISK_FILES,
        },
    }
    timed_out = False
    with _empty_folder() as folder, tempfile.TemporaryFile() as report:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD)],
            stdin=subprocess.PIPE,
            # A file, not a pipe: the limit on file sizes then holds for what the program says as well.
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(request).encode(), timeout=limits.seconds + START_SECONDS)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _kill_group(process)
        report.seek(0)
        messages = _messages(report.read(LARGEST_REPORT_BYTES))
    protections: dict[str, str] = next((message["protections"] for message in messages if "protections" in message), {})
    last = messages[-1] if messages else {}
    outcome, detail = str(last.get("outcome", "")), str(last.get("detail", ""))
    if timed_out or process.returncode == -signal.SIGXCPU or (process.returncode == -signal.SIGKILL and not outcome):
        return Verdict("time limit", "", protections)
    if not protections:
        return Verdict("error", f"the sandbox did not start (exit status {process.returncode})", protections)
    # What a program writes into the report by itself may be anything.
    if outcome not in OUTCOMES or (outcome == "passed" and last.get("token") != token):
        return Verdict("stopped early", f"exit status {process.returncode}", protections)
    return Verdict(outcome, detail, protections)


@contextmanager
def _empty_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuseline-code-"))
    try:
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, however deep: what lies in a subfolder is moved up first, so that no path grows too long."""
    folder.chmod(0o700)
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry)
                continue
            os.chmod(entry, 0o700)
            for name in os.listdir(entry):
                os.rename(Path(entry, name), folder / secrets.token_hex(8))
            os.rmdir(entry)
    folder.rmdir()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # The group is gone, or (macOS) all of it are zombies.
        process.kill()
    process.wait()


def _messages(report: bytes) -> list[dict]:
    messages = []
    for line in report.splitlines():
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(message, dict):
            messages.append(message)
    return messages
