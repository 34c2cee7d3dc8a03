"""Training in child processes: one for each GPU, or several on one machine.

The parent hands over a job file, reads events from a pipe (one JSON object a line) and turns whatever ends a child into
an error of its own. A child whose parent is gone reads the end of its standard input and stops as after SIGTERM.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fusion_core import errors
from fusion_core.config import TrainingConfig
from fusion_core.errors import FusionError, TrainingError
from fusion_core.progress import Advance
from fusion_core.training_interruption import Interruption
from fusion_core.training_metrics import TrainingReport, TrainingWindow

POLL_SECONDS = 0.2
# A child finds this package wherever its parent was started.
PACKAGES = str(Path(__file__).resolve().parents[1])


def launched_from_outside() -> bool:
    """Tell whether this process is one of several that torchrun, accelerate or the parent here started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def train_in_child_processes(
    pivot_folder: Path,
    shards: Sequence[Path],
    output: Path,
    config: TrainingConfig,
    *,
    checkpoint_folder: Path,
    lm_weight: float,
    device: torch.device,
    progress: Advance,
    on_window: Callable[[TrainingWindow], None],
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
        job = {
            "pivot_folder": str(pivot_folder.absolute()),
            "shards": [str(path.absolute()) for path in shards],
            "output": str(output.absolute()),
            "config": config.model_dump(mode="json"),
            "checkpoint_folder": str(checkpoint_folder.absolute()),
            "lm_weight": lm_weight,
            "device": device.type,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        children = _Children(folder, config.processes, device.type)
        try:
            children.follow(progress, on_window)
        finally:
            children.end()
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    windows = tuple(TrainingWindow(**window) for window in report.pop("windows"))
    return TrainingReport(**report, windows=windows)


class _Children:
    def __init__(self, folder: Path, count: int, device: str) -> None:
        self._events, writing = os.pipe()
        port = _free_port()
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
            if device == "cpu" and count > 1:
                environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "fusion_core.training_worker", str(folder), str(writing)],
                    stdin=subprocess.PIPE,
                    pass_fds=[writing],
                    env=environment,
                )
            )
        os.close(writing)

    def follow(self, progress: Advance, on_window: Callable[[TrainingWindow], None]) -> None:
        """Pass events on until all children are done; raise what ended one of them."""
        failure: FusionError | None = None
        with Interruption() as interruption, selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            pending, told = b"", False
            while True:
                if interruption.requested and not told:
                    told = True
                    self._signal(signal.SIGTERM)
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
                    failure = failure or self._take(json.loads(line), progress, on_window)
        codes = [process.wait() for process in self._processes]
        if failure is not None:
            raise failure
        killed = [code for code in codes if code]
        if killed:
            raise TrainingError(_cause_of_death(min(killed)))

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

    @staticmethod
    def _take(
        event: dict[str, Any], progress: Advance, on_window: Callable[[TrainingWindow], None]
    ) -> FusionError | None:
        if "window" in event:
            on_window(TrainingWindow(**event["window"]))
        elif "progress" in event:
            progress(*event["progress"])
        elif "error" in event:
            return getattr(errors, event["error"], TrainingError)(event["message"])
        return None


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"A training process ended with status {code} and no message; its output above says why."
    name = signal.Signals(-code).name
    meaning = (
        "which usually means that the machine's memory ran out: lower `micro_batch_tokens`, set "
        "`gradient_checkpointing: true`, or give the machine more memory"
        if -code == signal.SIGKILL
        else "which is a crash in a library; its output above may say where"
    )
    return f"A training process was killed by {name}, {meaning}."


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
