"""Runs ``fuseline`` many times for the price of one start of Python: the imports are done once, each run is a fork.

Each run is a process group of its own with the command line's ordinary entry, ended in the ordinary way or killed.
Requests and answers are lines of JSON on standard input and output:

    {"arguments": [...], "environment": {...}, "log": "/a/file", "before": "name"}   ->   {"pid": 1234}
    {"wait": 1234}                                                                   ->   {"status": -9}

What a run prints goes to ``/a/file.out`` and ``/a/file.err``.
``before`` names a function of `tests.faults.injected` that is called in the child first, with what the variable
``TEST_ARGUMENT`` holds: that is how a test makes the product fail where it wants it to.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
IMPORTED = ("torch", "transformers", "mlflow", "prefect", "flows.fusechat", "flows.command_line.fusion_commands")
IMPORTED += ("sqlalchemy.dialects.sqlite", "mlflow.store.tracking.sqlalchemy_store", "tests.faults.injected")


class Launcher:
    """The parent of all runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, arguments: list[str], environment: dict[str, str], log: Path, before: str = "") -> int:
        """Begin a run and return its process id, which is its process group's too."""
        request = {"arguments": arguments, "environment": environment, "log": str(log), "before": before}
        return int(self._ask(request)["pid"])

    def wait(self, pid: int) -> int:
        """Wait for a run and return its exit status, negative for the signal that killed it."""
        return int(self._ask({"wait": pid})["status"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the launcher has ended"
        return dict(json.loads(answer))


@contextmanager
def running_launcher(environment: dict[str, str]) -> Iterator[Launcher]:
    """Start the parent with the environment that Prefect and MLflow read as they are imported."""
    command = [sys.executable, "-m", "tests.faults.launcher"]
    process = subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Launcher(process)
    finally:
        process.communicate(timeout=60)


def serve() -> dict[str, Any] | None:
    """Answer requests until standard input ends; in a child, return what it is to run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that an import prints is an answer
    from tasks.environment import configure_libraries, home_folder

    # As the command line does before it imports them.
    configure_libraries(home_folder())
    for name in IMPORTED:
        importlib.import_module(name)
    # Shared with every child, and not written to by its collector.
    gc.freeze()
    begun: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitpid(request["wait"], 0)[1]
            begun.discard(request["wait"])
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                return dict(request)
            begun.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)
    # The test has ended before what it began.
    for pid in begun:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the run that was asked for."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for ending, here in ((".out", 1), (".err", 2)):
        os.dup2(os.open(request["log"] + ending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), here)
    os.environ.update(request["environment"])
    os.chdir(os.environ["TEST_FOLDER"])
    if request["before"]:
        from tests.faults import injected

        getattr(injected, request["before"])()
    from flows.command_line import main

    sys.argv = ["fuseline", *request["arguments"]]
    main()


if __name__ == "__main__":
    wanted = serve()
    if wanted is not None:
        become(wanted)
