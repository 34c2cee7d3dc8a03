"""Extraction in several processes through the pipeline: same addresses, same bytes, and a kill costs little."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.command_line import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of small shards, prepared in a home of its own."""
    shutil.copytree(recipe_file.parent, tmp_path / "recipe")
    recipe = tmp_path / "recipe" / recipe_file.name
    text = recipe.read_text(encoding="utf-8").replace("shard_dialogues: 12", "shard_dialogues: 5")
    recipe.write_text(text, encoding="utf-8")
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(monkeypatch, "prepare", recipe)
    return recipe


def run(monkeypatch: pytest.MonkeyPatch, stage: str, recipe: Path) -> None:
    options = ["--model", "stories"] if stage == "extract" else []
    monkeypatch.setattr("sys.argv", ["fuseline", stage, str(recipe), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code


def in_two_processes(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert "{top_k: 8}" in text
    recipe.write_text(text.replace("{top_k: 8}", "{top_k: 8, placement: replicas, processes: 2}"), encoding="utf-8")


def shards(home: Path) -> dict[str, str]:
    """Address and SHA-256 of every shard in a home's store."""
    folder = home / "store" / "distributions"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.parquet")
    }


@pytest.fixture
def alone(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What one process extracts, in a home of its own."""
    shutil.copytree(tmp_path / "home", tmp_path / "alone")
    with monkeypatch.context() as patch:
        patch.setenv("FUSELINE_HOME", str(tmp_path / "alone"))
        run(patch, "extract", recipe)
    return shards(tmp_path / "alone")


def test_two_processes_publish_what_one_does(
    recipe: Path, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_two_processes(recipe)
    run(monkeypatch, "extract", recipe)
    assert len(alone) > 3 and shards(tmp_path / "home") == alone


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_amid_an_extraction_costs_the_shards_in_flight(
    recipe: Path, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    if processes > 1:
        in_two_processes(recipe)
    script = "from flows.command_line import main; main()"
    killed = subprocess.Popen(
        [sys.executable, "-c", script, "extract", str(recipe), "--model", "stories"],
        cwd=REPOSITORY,
        env=os.environ,
        stdout=subprocess.DEVNULL,
    )
    while not shards(tmp_path / "home"):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    left = shards(tmp_path / "home")
    assert 0 < len(left) < len(alone)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "store").rglob("shard-*.parquet")}
    run(monkeypatch, "extract", recipe)
    assert shards(tmp_path / "home") == alone
    kept = [path for path, time_ns in written.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(left) - 1
