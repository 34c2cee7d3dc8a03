"""Several processes, child processes and signals."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
import torch

from fusion_core.errors import TrainingError, TrainingInterruptedError
from fusion_core.progress import ignore_progress
from fusion_core.training.interruption import Interruption
from fusion_core.training.job import TrainingJob, TrainingListener
from fusion_core.training.processes import train_in_child_processes
from fusion_core.training.target import train_target
from tests.fusion_core.training_fixtures import CPU, settings, train, weights, write_tiny_llama

# Starting Python with torch in children takes most of these tests' time.
pytestmark = pytest.mark.timeout(300)


def train_in_child(pivot, shards, folder: Path, config, progress=ignore_progress):
    job = TrainingJob(pivot, tuple(shards), folder / "target", config, folder / "checkpoints", 0.9, CPU)
    with Interruption() as interruption:
        return train_in_child_processes(job, TrainingListener(progress), interruption)


def assert_same_result(one, two, folders: tuple[Path, Path]) -> None:
    assert [w.lm_loss for w in two.windows] == pytest.approx([w.lm_loss for w in one.windows], rel=1e-4)
    assert [w.gradient_norm for w in two.windows] == pytest.approx([w.gradient_norm for w in one.windows], rel=1e-3)
    assert (two.positions, two.tokens) == (one.positions, one.tokens)
    assert_same_weights(*folders)


def assert_same_weights(*folders: Path) -> None:
    first, second = (weights(folder / "target") for folder in folders)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_give_the_result_of_one(pivot, shards, tmp_path, strategy):
    one = train(pivot, shards, tmp_path / "one", settings(batch_tokens=150))
    windows = []
    config = settings(batch_tokens=150, processes=2, strategy=strategy)
    two = train(pivot, shards, tmp_path / "two", config, on_window=windows.append)
    assert tuple(windows) == two.windows
    assert_same_result(one, two, (tmp_path / "one", tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}, "gradient_checkpointing": True, "packing": True}])
def test_spread_weights_may_be_tied_or_have_adapters(shards, tmp_path, tied, changes):
    pivot = write_tiny_llama(tmp_path / "pivot", seed=1, tied=tied)
    one = train(pivot, shards, tmp_path / "one", settings(**changes))
    two = train(pivot, shards, tmp_path / "two", settings(processes=2, strategy="fsdp", **changes))
    assert_same_result(one, two, (tmp_path / "one", tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_a_run_of_one_process_goes_on_as_two(pivot, shards, tmp_path, strategy):
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 5:
            raise PowerCutError

    one = train(pivot, shards, tmp_path / "one", settings())
    with pytest.raises(PowerCutError):
        train(pivot, shards, tmp_path / "two", settings(), progress=cut)
    steps = []
    two = train(
        pivot,
        shards,
        tmp_path / "two",
        settings(processes=2, strategy=strategy),
        progress=lambda done, total: steps.append(done),
    )
    assert steps[0] == 5
    assert_same_result(one, two, (tmp_path / "one", tmp_path / "two"))


def test_sigterm_writes_a_checkpoint_that_is_resumed_to_the_same_bytes(pivot, shards, tmp_path):
    def preempt(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match="after step 3 of 7"):
        train(pivot, shards, tmp_path / "cut", settings(), progress=preempt)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000003"]
    train(pivot, shards, tmp_path / "cut", settings())
    train(pivot, shards, tmp_path / "whole", settings())
    assert (tmp_path / "cut/target/model.safetensors").read_bytes() == (
        tmp_path / "whole/target/model.safetensors"
    ).read_bytes()


def test_sigterm_while_the_model_loads_stops_at_once(pivot, shards, tmp_path, monkeypatch):
    def preempted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still loading")

    monkeypatch.setattr("fusion_core.models.loading.AutoModelForCausalLM.from_pretrained", preempted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match="no step was under way"):
        train(pivot, shards, tmp_path, settings())
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_while_a_child_starts_is_no_crash(pivot, shards, tmp_path):
    early = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    early.start()
    with pytest.raises(TrainingInterruptedError, match="asked to stop"):
        train_in_child(pivot, shards, tmp_path, settings(epochs=400))
    early.join()
    assert not (tmp_path / "target").exists()


def test_sigterm_reaches_the_child(pivot, shards, tmp_path):
    def preempt(done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match="wrote a checkpoint"):
        train_in_child(pivot, shards, tmp_path, settings(epochs=400), preempt)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert not (tmp_path / "target").exists()


def test_a_killed_child_is_an_error_that_says_what_to_lower(pivot, shards, tmp_path):
    # Servers that other tests of this process use are its children, too.
    others = psutil.Process().children()

    def kill(done: int, total: int) -> None:
        if done > 1:
            return
        for child in psutil.Process().children():
            if child not in others:
                child.kill()

    with pytest.raises(TrainingError, match=r"SIGKILL after step 1, .*96 tokens.*GB.*micro_batch_tokens"):
        train_in_child(pivot, shards, tmp_path, settings(epochs=400), kill)


def test_a_device_is_worked_on_in_a_child_process(pivot, shards, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(
        "fusion_core.training.target.train_in_child_processes", lambda job, listener, interruption: jobs.append(job)
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    folders = {"output": tmp_path / "target", "checkpoint_folder": tmp_path / "checkpoints"}
    train_target(pivot, shards, config=settings(), device=torch.device("cuda"), **folders)
    assert [(job.device.type, job.config.processes) for job in jobs] == [("cuda", 1)]
    with pytest.raises(TrainingError, match="`processes: 3` is more than the 2 GPUs"):
        train_target(pivot, shards, config=settings(processes=3), device=torch.device("cuda"), **folders)
    with pytest.raises(TrainingError, match=r"`processes: 1000` is more than the \d+ cores"):
        train_target(pivot, shards, config=settings(processes=1000), device=CPU, **folders)


@pytest.mark.slow
def test_a_childs_own_error_keeps_its_kind(pivot, shards, tmp_path):
    config = settings()
    train(pivot, shards, tmp_path, config.model_copy(update={"checkpoint_steps": 3}))
    with pytest.raises(TrainingError, match="another learning_rate"):
        train_in_child(pivot, shards, tmp_path, settings(learning_rate=1e-3))
