"""Training in child processes: one for each GPU, or several on one machine.

The parent hands over a job file, reads events from a pipe (one JSON object a line) and turns whatever ends a child into
an error of its own. A child whose parent is gone reads the end of its standard input and stops as after SIGTERM.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fusion_core import errors
from fusion_core.errors import FusionError, TrainingError, TrainingInterruptedError
from fusion_core.ports import free_ports
from fusion_core.training.interruption import Interruption
from fusion_core.training.job import TrainingJob, TrainingListener
from fusion_core.training.metrics import TrainingReport, TrainingWindow

POLL_SECONDS = 0.2
# A child finds this package wherever its parent was started.
PACKAGES = str(Path(__file__).resolve().parents[2])


def launched_from_outside() -> bool:
    """Tell whether this process is one of several that torchrun, accelerate or the parent here started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def follows_another_process() -> bool:
    """Tell whether this process was launched from outside and is not the first one, which writes and publishes."""
    return launched_from_outside() and os.environ["RANK"] != "0"


def train_in_child_processes(
    job: TrainingJob, listener: TrainingListener, interruption: Interruption
) -> TrainingReport:
    """Train in `config.processes` children of this process; see `train_target`.

    Raises
    ------
    TrainingError
        If a child dies; where a signal killed it, the message says so and what that usually means.
    FusionError
        What a child raised.
    """
    with tempfile.TemporaryDirectory(prefix="fuseline-training-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job.to_json()), encoding="utf-8")
        children = _Children(folder, job)
        try:
            with interruption.noted():
                children.follow(listener, interruption)
        finally:
            children.end()
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    windows = tuple(TrainingWindow(**window) for window in report.pop("windows"))
    return TrainingReport(**report, windows=windows)


class _Children:
    def __init__(self, folder: Path, job: TrainingJob) -> None:
        count = job.config.processes
        self._micro_batch_tokens = job.config.micro_batch_tokens
        self._steps_done, self._resident_bytes = 0, 0
        self._events, writing = os.pipe()
        (port,) = free_ports(1)
        self._processes = []
        for rank in range(count):
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")])),
            }
            if count > 1:
                # A child alone gets none of these, or it would talk to itself through a process group.
                environment |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            if job.device.type == "cpu" and count > 1:
                environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "fusion_core.training.worker", str(folder), str(writing)],
                    stdin=subprocess.PIPE,
                    pass_fds=[writing],
                    env=environment,
                )
            )
        os.close(writing)

    def follow(self, listener: TrainingListener, interruption: Interruption) -> None:
        """Pass events on until all children are done; raise what ended one of them."""
        failure: FusionError | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            pending, told = b"", False
            while True:
                if interruption.requested and not told:
                    told = True
                    self._signal(signal.SIGTERM)
                self._look_at_memory()
                if not selector.select(POLL_SECONDS):
                    if any(process.poll() for process in self._processes):
                        # The others wait for the dead one in a collective operation, where no signal reaches them.
                        self._signal(signal.SIGKILL)
                    continue
                block = os.read(self._events, 1 << 16)
                if not block:
                    break
                *lines, pending = (pending + block).split(b"\n")
                for line in lines:
                    failure = failure or self._take(json.loads(line), listener)
        codes = [process.wait() for process in self._processes]
        if failure is not None:
            raise failure
        killed = [code for code in codes if code]
        if killed:
            raise self._cause_of_death(min(killed))

    def end(self) -> None:
        """Leave no child behind, whatever happened."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        os.close(self._events)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _look_at_memory(self) -> None:
        for process in self._processes:
            with suppress(psutil.Error):
                self._resident_bytes = max(self._resident_bytes, psutil.Process(process.pid).memory_info().rss)

    def _take(self, event: dict[str, Any], listener: TrainingListener) -> FusionError | None:
        if "window" in event:
            listener.on_window(TrainingWindow(**event["window"]))
        elif "progress" in event:
            self._steps_done = event["progress"][0]
            listener.progress(*event["progress"])
        elif "checkpoint" in event:
            listener.on_checkpoint(Path(event["checkpoint"]))
        elif "error" in event:
            return getattr(errors, event["error"], TrainingError)(event["message"])
        return None

    def _cause_of_death(self, code: int) -> TrainingError:
        if code >= 0:
            return TrainingError(
                f"A training process ended with status {code} and no message; its output above says why."
            )
        if -code == signal.SIGTERM:
            # It came before the process was ready to answer it.
            return TrainingInterruptedError(
                "Training was asked to stop (SIGTERM) before its first step; the same command goes on from the last "
                "checkpoint."
            )
        meaning = (
            "which usually means that the machine's memory ran out: lower `micro_batch_tokens`, set "
            "`gradient_checkpointing: true`, or give the machine more memory"
            if -code == signal.SIGKILL
            else "which is a crash in a library; its output above may say where"
        )
        return TrainingError(
            f"A training process was killed by {signal.Signals(-code).name} after step {self._steps_done}, with "
            f"micro-batches of {self._micro_batch_tokens} tokens and up to {self._resident_bytes / 1e9:.1f} GB of the "
            f"machine's memory in a process, {meaning}."
        )
