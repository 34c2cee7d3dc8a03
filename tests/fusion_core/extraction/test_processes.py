"""Shards shared out among processes: the same bytes, and no process left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fusion_core.config import ExtractionConfig, ModelConfig
from fusion_core.dialogues import Dialogue, Turn
from fusion_core.dialogues.shards import to_table
from fusion_core.errors import ModelError, ShardError
from fusion_core.extraction import processes as extraction_processes
from fusion_core.extraction.processes import PACKAGES, extract_files
from fusion_core.extraction.shards import ExtractionJob
from fusion_core.models.identity import ResolvedModel, resolve_model
from fusion_core.models.placement import Placement
from fusion_core.shards import read_shard
from tests.messages import one_sentence

CPU = torch.device("cpu")
STORIES = Path(__file__).resolve().parents[2] / "data" / "stories260k"
TEMPLATE = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
# Answers a shard with an event and a file; what it does before that is filled in.
WORKER = """
import json, os, signal, sys, time
events = int(sys.argv[1])
def tell(event):
    os.write(events, json.dumps(event).encode() + b"\\n")
sys.stdin.readline()
for line in sys.stdin:
    task = json.loads(line)
    tell({"progress": [1, 2]})
    BEFORE
    open(task["target"], "w").close()
    tell({"done": {"positions": 2, "tokens": 3, "padding_share": 0.0, "batch_tokens": 9, "seconds": 1.0,
                   "own_logits": False}})
"""


def job(model: ResolvedModel, processes: int) -> ExtractionJob:
    return ExtractionJob(model, "d" * 64, 64, ExtractionConfig(top_k=4), Placement("one_device", processes))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    template = tmp_path_factory.mktemp("model") / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    return resolve_model(
        ModelConfig.model_validate({"name": "stories", "path": STORIES, "chat_template": template, "dtype": "float32"})
    )


def write_dialogues(folder: Path, shards: int) -> dict[Path, Path]:
    """Write small shards of dialogues; returns from each target to its source."""
    for number in range(shards):
        turns = [
            (
                Turn("user", f"Tell me of {number} and {index}."),
                Turn("assistant", "Once there was a cat. " * (index + 1)),
            )
            for index in range(3)
        ]
        dialogues = [Dialogue(f"{number}-{index}", "prose", pair) for index, pair in enumerate(turns)]
        pq.write_table(to_table(dialogues), folder / f"dialogues-{number}.parquet")
    return {folder / f"shard-{number}.parquet": folder / f"dialogues-{number}.parquet" for number in range(shards)}


def pretend(monkeypatch: pytest.MonkeyPatch, before: str) -> list[subprocess.Popen]:
    """Let children be a worker that computes nothing; returns those that were started."""
    started: list[subprocess.Popen] = []
    start = subprocess.Popen

    def watch(*arguments: object, **settings: object) -> subprocess.Popen:
        started.append(start(*arguments, **settings))
        return started[-1]

    script = WORKER.replace("BEFORE", before)
    monkeypatch.setattr(extraction_processes, "WORKER", (sys.executable, "-c", script))
    monkeypatch.setattr(extraction_processes.subprocess, "Popen", watch)
    return started


def test_two_processes_write_the_bytes_of_one(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shards = write_dialogues(tmp_path, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [path for path, _ in extract_files(job(model, 1), shards, CPU)]
    finally:
        torch.set_num_threads(threads)
    assert alone == list(shards)
    bytes_alone = {path: path.read_bytes() for path in shards}
    for path in shards:
        path.unlink()
    reports: list[tuple[int, int]] = []
    written = dict(extract_files(job(model, 2), shards, CPU, lambda done, total: reports.append((done, total))))
    assert {path: path.read_bytes() for path in written} == bytes_alone
    positions = sum(read_shard(path).top_k.positions for path in shards)
    assert sum(statistics.positions for statistics in written.values()) == positions
    assert reports[-1] == (positions, positions)


def test_every_shard_is_taken_once_by_whoever_is_free(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first shard takes until all others are there.
    slow = (
        "while task['target'].endswith('-0') and len(os.listdir(os.path.dirname(task['target']))) < 5: time.sleep(0.01)"
    )
    started = pretend(monkeypatch, slow)
    shards = {tmp_path / f"target-{number}": tmp_path for number in range(6)}
    reports: list[tuple[int, int]] = []
    order = [path for path, _ in extract_files(job(model, 2), shards, CPU, lambda *report: reports.append(report))]
    assert sorted(order) == sorted(shards) and order[-1].name == "target-0"
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    # What is known of the shards that were begun stands for the others.
    assert reports[0] == (1, 12) and reports[-1] == (6, 12)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ("'stories'", "SIGKILL", "memory", "`extraction.processes`")),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ("'stories'", "SIGSEGV")),
        ("os._exit(3)", ("'stories'", "status 3")),
    ],
)
def test_a_child_that_dies_ends_the_others(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch, before: str, words: tuple[str, ...]
) -> None:
    started = pretend(monkeypatch, f"({before}) if task['target'].endswith('-1') else time.sleep(60)")
    shards = {tmp_path / f"target-{number}": tmp_path for number in range(4)}
    with pytest.raises(ModelError) as error:
        list(extract_files(job(model, 3), shards, CPU))
    message = one_sentence(error)
    assert all(word in message for word in words), message
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_an_error_of_a_child_is_raised_as_it_was_there(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "tell({'error': 'ShardError', 'message': 'A shard is broken.'}); time.sleep(60)")
    with pytest.raises(ShardError, match=r"^A shard is broken\.$"):
        list(extract_files(job(model, 2), {tmp_path / "a": tmp_path, tmp_path / "b": tmp_path}, CPU))


def stop_at_a_report(done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["interrupted", "closed"])
def test_whoever_stops_in_the_middle_leaves_no_process(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    started = pretend(monkeypatch, "time.sleep(0 if task['target'].endswith('-1') else 60)")
    shards = {tmp_path / f"target-{number}": tmp_path for number in range(4)}
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            list(extract_files(job(model, 2), shards, CPU, stop_at_a_report))
    else:
        files = extract_files(job(model, 2), shards, CPU)
        assert next(files)[0].name == "target-1"
        files.close()
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_children_stop_when_their_parent_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    """The real worker notices it before it has anything to do, and in the middle of anything."""
    script = f"""
        import json, os, subprocess, sys
        from pathlib import Path
        children = [
            subprocess.Popen([sys.executable, "-m", "fusion_core.extraction.worker", "1"], stdin=subprocess.PIPE,
                             process_group=0)
            for _ in range(1)
        ]
        Path({str(tmp_path / "children")!r}).write_text(json.dumps([child.pid for child in children]))
        children[0].wait()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "PYTHONPATH": PACKAGES}
    )
    told = tmp_path / "children"
    wait_until(lambda: told.is_file() and told.stat().st_size > 0)
    children = json.loads(told.read_text())
    assert all(map(is_running, children))
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not any(map(is_running, children)))
