"""Whole fusions in homes of their own: begun, watched, killed, begun again, and looked at from outside."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tasks.store.owners import TEMPORARY_NAME
from tests.faults.launcher import Launcher

RUN_SECONDS = 300.0
LOOK_SECONDS = 0.002
# What a run writes anew beside the manifests: the card with the scores, and what MLflow loads the checkpoint by.
BESIDE = ("README.md", "MLmodel")


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it printed."""

    status: int
    output: str
    errors: str

    @property
    def stages(self) -> dict[str, str]:
        """Address and status (computed or cached) of every stage, from the run's own summary."""
        folder = Path(json.loads(self.output)["files"]["folder"])
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return {row["address"]: row["status"] for row in summary["stages"]}


@dataclass(frozen=True)
class Whole:
    """What was whole in a store at one moment: addresses with a manifest, and objects, each with its file's number."""

    addresses: dict[str, int]
    objects: dict[str, int]


@dataclass(frozen=True)
class Home:
    """A home folder with store, MLflow and work folders, and the environment of the runs in it."""

    folder: Path
    environment: dict[str, str]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def whole(self) -> Whole:
        """Look what is whole in the store."""
        objects = {}
        for record in (self.store / ".sha256").rglob("*"):
            key = record.relative_to(self.store / ".sha256").as_posix() if record.is_file() else ""
            if key and not is_beside(key) and not key.startswith("locks/"):
                objects[key] = (self.store / key).stat().st_ino
        addresses = {
            path.parent.relative_to(self.store).as_posix(): path.stat().st_ino
            for path in self.store.rglob("manifest.json")
            if ".sha256" not in path.parts
        }
        return Whole(addresses, objects)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every object but manifests, which tell times and runs, and what lies beside them."""
        return {
            key: hashlib.sha256((self.store / key).read_bytes()).hexdigest()
            for key in self.whole().objects
            if not key.endswith("manifest.json")
        }

    def mlflow_runs(self) -> list[tuple[str, str, bool]]:
        """Name and status of every run in MLflow, and whether it is that of a fusion."""
        with sqlite3.connect(self.folder / "mlflow.db", timeout=60) as database:
            found = database.execute(
                "SELECT name, status, EXISTS (SELECT 1 FROM tags WHERE tags.run_uuid = runs.run_uuid AND "
                "tags.key = 'fuseline.stage' AND tags.value = 'fusion') FROM runs ORDER BY start_time"
            ).fetchall()
        database.close()
        return [(name, status, bool(fusion)) for name, status, fusion in found]

    def versions(self) -> int:
        """How many versions of models are registered."""
        with sqlite3.connect(self.folder / "mlflow.db", timeout=60) as database:
            (count,) = database.execute("SELECT COUNT(*) FROM model_versions").fetchone()
        database.close()
        return int(count)

    def temporaries(self) -> list[str]:
        """Everything that only a run under way may have."""
        places = (self.store / ".partial", self.store / "locks", self.folder / "work", self.folder / "tmp")
        found = [path for place in places if place.is_dir() for path in place.rglob("*")]
        for path in self.folder.rglob("*"):
            if path.name.endswith((".tmp", ".partial", "-journal")) or TEMPORARY_NAME.fullmatch(path.name):
                found.append(path)
        return sorted({str(path.relative_to(self.folder)) for path in found} - {"store/.partial"})


def is_beside(key: str) -> bool:
    """Say whether an object lies beside a manifest rather than in it."""
    return key.endswith(BESIDE) or "/components/" in key


@dataclass(frozen=True)
class Fusions:
    """Starts runs of one recipe."""

    launcher: Launcher
    recipe: Path
    root: Path
    environment: dict[str, str]
    template: Path | None = None

    def home(self, name: str) -> Home:
        """Make a home in which MLflow's tables are there already, as after an earlier run of another recipe."""
        folder = self.root / name
        (folder / "tmp").mkdir(parents=True)
        if self.template is not None:
            shutil.copyfile(self.template, folder / "mlflow.db")
        own = {"FUSELINE_HOME": str(folder), "TMPDIR": str(folder / "tmp"), "TEST_FOLDER": str(folder)}
        return Home(folder, self.environment | own)

    def start(self, home: Home, before: str = "", argument: str = "", **more: str) -> int:
        """Begin a run and return its process id."""
        environment = home.environment | {"TEST_ARGUMENT": argument} | more
        return self.launcher.start(["run", str(self.recipe), "--json"], environment, home.folder / "log", before)

    def end(self, home: Home, pid: int) -> Outcome:
        """Wait for a run's end."""
        status = self.launcher.wait(pid)
        output, errors = ((home.folder / f"log{ending}").read_text(errors="replace") for ending in (".out", ".err"))
        return Outcome(status, output, errors)

    def run(self, home: Home, before: str = "", argument: str = "", **more: str) -> Outcome:
        """Run to the end."""
        return self.end(home, self.start(home, before, argument, **more))


def is_running(pid: int) -> bool:
    """Say whether a process has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_tree(pid: int) -> None:
    """Kill a run and every process that it began, as a power cut would."""
    family = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    os.killpg(pid, signal.SIGKILL)
    for process in family[1:]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family[1:], timeout=30)


@dataclass(frozen=True)
class Timeline:
    """When each stage of an undisturbed run began, in seconds from the run's start, and when the run ended."""

    names: tuple[str, ...]
    starts: tuple[float, ...]
    end: float

    def span(self, stage: int) -> tuple[str | None, float]:
        """Return the work folder whose appearance begins a stage (None: the run's start), and how long it takes."""
        moments = (0.0, *self.starts, self.end)
        return (None, *self.names)[stage], moments[stage + 1] - moments[stage]


def watch(home: Home, pid: int) -> Timeline:
    """Watch an undisturbed run: a stage begins when its work folder appears."""
    began = time.monotonic()
    names: list[str] = []
    starts: list[float] = []
    work = home.folder / "work"
    while is_running(pid):
        there = [name for name in (os.listdir(work) if work.is_dir() else ()) if not name.endswith(".lock")]
        for name in there:
            if name not in names:
                names.append(name)
                starts.append(time.monotonic() - began)
        time.sleep(LOOK_SECONDS)
    return Timeline(tuple(names), tuple(starts), time.monotonic() - began)


def kill_in(home: Home, pid: int, timeline: Timeline, stage: int, share: float) -> bool:
    """Kill a run when a share of a stage's time has gone by; False where the run has ended before."""
    name, seconds = timeline.span(stage)
    folder = home.folder / "work" / name if name is not None else home.folder
    if not wait_until(lambda: folder.exists() or not is_running(pid), RUN_SECONDS) or not is_running(pid):
        return False
    deadline = time.monotonic() + share * seconds
    while time.monotonic() < deadline and is_running(pid):
        time.sleep(LOOK_SECONDS)
    if not is_running(pid):
        return False
    kill_tree(pid)
    return True


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look until something is so; False when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def check_rerun(home: Home, before: Whole, outcome: Outcome, undisturbed: dict[str, str], *, fusions: int = 1) -> None:
    """Assert what must hold when a run that was killed has been run again."""
    assert outcome.status == 0, outcome.errors[-3000:]
    assert "Traceback" not in outcome.errors
    # What was whole was found: it is the same file, and the run says that it computed none of it.
    after = home.whole()
    stages = outcome.stages
    assert {address: after.addresses.get(address) for address in before.addresses} == before.addresses
    assert {key: after.objects.get(key) for key in before.objects} == before.objects
    assert {address for address in before.addresses if stages[address] != "cached"} == set()
    assert {address for address, status in stages.items() if status != "computed"} == set(before.addresses)
    worked = {tuple(line) for line in recorded_work(home)}
    parts = [key.split("/") for key in before.objects if key.startswith("distributions/") and key.endswith(".parquet")]
    assert not {("distributions", model, name) for _, model, *_, name in parts} & worked
    fused = {key.rpartition("/") for key in before.objects if key.startswith("fused/") and key.endswith(".parquet")}
    coverage = {key.replace("shard-", "coverage-").replace(".parquet", ".json") for key in before.objects}
    done = {("fused", address, name) for address, _, name in fused if f"{address}/{_coverage(name)}" in coverage}
    assert not done & worked
    # Every byte that an undisturbed run publishes is there, and nothing else.
    assert home.digests() == undisturbed
    assert home.temporaries() == []
    runs = home.mlflow_runs()
    assert [(name, status) for name, status, fusion in runs if fusion] == [("small", "FINISHED")] * fusions
    assert [name for name, status, _ in runs if status == "RUNNING"] == []
    assert home.versions() == 1


def recorded_work(home: Home) -> list[list[str]]:
    """Return what the run wrote down with `injected.record_work`: stage, beginning of the address, name."""
    path = home.folder / "recorded"
    lines: list[list[Any]] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [[stage, digest[:32] if stage == "distributions" else digest, name] for stage, digest, name in lines]


def _coverage(name: str) -> str:
    return name.replace("shard-", "coverage-").replace(".parquet", ".json")
