"""A model's shards, one after the other in this process or shared out among child processes.

Each child has a copy of the model and takes the next shard that nobody has taken. Children write files; what becomes of
them is the caller's business.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fusion_core import errors
from fusion_core.errors import FusionError, ModelError
from fusion_core.extraction.shards import ExtractionJob, ShardExtractor
from fusion_core.extraction.statistics import ExtractionStatistics
from fusion_core.progress import Advance, ignore_progress

# A child finds this package wherever its parent was started.
PACKAGES = str(Path(__file__).resolve().parents[2])
WORKER = (sys.executable, "-m", "fusion_core.extraction.worker")


def extract_files(
    job: ExtractionJob, shards: Mapping[Path, Path], device: torch.device, progress: Advance = ignore_progress
) -> Generator[tuple[Path, ExtractionStatistics], None, None]:
    """Read shards of dialogues and yield each shard of distributions as soon as it is written.

    Parameters
    ----------
    job : ExtractionJob
    shards : mapping of Path to Path
        From the file to write to the file of dialogues.
    device : torch.device
        Of this process; children take a GPU each.
    progress : Advance
        Called with the positions done, and those of all shards by what is known of them.

    Raises
    ------
    FusionError
        What a shard's extraction raised, here or in a child; or a child died. No child is left behind, also where the
        caller stops in the middle.
    """
    totals = _Totals(len(shards), progress)
    if job.placement.processes == 1:
        extractor = ShardExtractor(job, device)
        for target, source in shards.items():
            yield target, extractor.extract(source, target, totals.of(target))
        return
    children = _Children(job, device)
    try:
        yield from children.work_off(shards, totals)
    finally:
        children.end()


class _Totals:
    """Progress over all shards, of which only those begun say how many positions they have."""

    def __init__(self, shards: int, progress: Advance) -> None:
        self._shards, self._progress = shards, progress
        self._done: dict[Path, int] = {}
        self._total: dict[Path, int] = {}

    def of(self, target: Path) -> Advance:
        """Return what one shard reports to."""

        def advance(done: int, total: int) -> None:
            self._done[target], self._total[target] = done, total
            expected = sum(self._total.values()) * self._shards // len(self._total)
            self._progress(sum(self._done.values()), expected)

        return advance


class _Child:
    def __init__(self, job: ExtractionJob, environment: dict[str, str]) -> None:
        self.events, writing = os.pipe()
        self.pending = b""
        self.target: Path | None = None
        self.process = subprocess.Popen(
            [*WORKER, str(writing)],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env=environment,
            # Ctrl-C is the parent's to answer: it ends its children.
            process_group=0,
        )
        os.close(writing)
        self.send(job.to_json())

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            # It has died; the end of its events says so.
            return

    def take(self, target: Path, source: Path) -> None:
        self.target = target
        self.send({"source": str(source.absolute()), "target": str(target.absolute())})

    def read(self) -> list[dict[str, Any]] | None:
        block = os.read(self.events, 1 << 16)
        if not block:
            return None
        *lines, self.pending = (self.pending + block).split(b"\n")
        return [json.loads(line) for line in lines]


class _Children:
    def __init__(self, job: ExtractionJob, device: torch.device) -> None:
        self._name = job.model.name
        self._children: list[_Child] = []
        for number in range(job.placement.processes):
            self._children.append(_Child(job, _environment(device, number, job.placement.processes)))

    def work_off(self, shards: Mapping[Path, Path], totals: _Totals) -> Iterator[tuple[Path, ExtractionStatistics]]:
        waiting = list(shards.items())
        for child in self._children:
            child.take(*waiting.pop(0))
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                selector.register(child.events, selectors.EVENT_READ, child)
            while any(child.target for child in self._children):
                for key, _ in selector.select():
                    child = key.data
                    for event in self._events(child):
                        assert child.target is not None
                        if "progress" in event:
                            totals.of(child.target)(*event["progress"])
                            continue
                        finished, child.target = child.target, None
                        # Before what it has done is published, so that it does not wait for that.
                        if waiting:
                            child.take(*waiting.pop(0))
                        yield finished, ExtractionStatistics(**event["done"])

    def end(self) -> None:
        """Leave no child behind, whatever happened."""
        for child in self._children:
            if child.process.poll() is None:
                # The group too: an engine may have processes of its own.
                os.killpg(child.process.pid, signal.SIGKILL)
        for child in self._children:
            child.process.wait()
            assert child.process.stdin is not None
            try:
                child.process.stdin.close()
            except BrokenPipeError:
                continue
            finally:
                os.close(child.events)

    def _events(self, child: _Child) -> list[dict[str, Any]]:
        events = child.read()
        if events is None:
            raise ModelError(self._cause_of_death(child.process.wait()))
        for event in events:
            if "error" in event:
                kind: type[FusionError] = getattr(errors, event["error"], ModelError)
                raise kind(event["message"])
        return events

    def _cause_of_death(self, code: int) -> str:
        if code >= 0:
            return (
                f"Model {self._name!r}: a process that read it ended with status {code} and no message; its output "
                "above says why."
            )
        meaning = (
            "which usually means that the machine's memory ran out: lower `extraction.processes` or `batch_tokens`"
            if -code == signal.SIGKILL
            else "which is a crash in a library; its output above may say where"
        )
        return f"Model {self._name!r}: a process that read it was killed by {signal.Signals(-code).name}, {meaning}."


def _environment(device: torch.device, number: int, processes: int) -> dict[str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")])),
    }
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    else:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return environment
