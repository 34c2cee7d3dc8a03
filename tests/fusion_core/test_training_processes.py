"""Several processes, child processes and signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from fusion_core.errors import TrainingError, TrainingInterruptedError
from fusion_core.progress import ignore_progress
from fusion_core.training_processes import train_in_child_processes
from tests.fusion_core.test_training import CPU, pivot, settings, shards, train, weights  # noqa: F401

# Starting Python with torch in children takes most of these tests' time.
pytestmark = pytest.mark.timeout(300)


def train_in_child(pivot, shards, folder: Path, config, progress=ignore_progress):  # noqa: F811
    return train_in_child_processes(
        pivot,
        shards,
        folder / "target",
        config,
        checkpoint_folder=folder / "checkpoints",
        lm_weight=0.9,
        device=CPU,
        progress=progress,
        on_window=lambda window: None,
    )


def assert_same_result(one, two, folders: tuple[Path, Path]) -> None:
    assert [w.lm_loss for w in two.windows] == pytest.approx([w.lm_loss for w in one.windows], rel=1e-4)
    assert [w.gradient_norm for w in two.windows] == pytest.approx([w.gradient_norm for w in one.windows], rel=1e-3)
    assert (two.positions, two.tokens) == (one.positions, one.tokens)
    first, second = (weights(folder / "target") for folder in folders)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_give_the_result_of_one(pivot, shards, tmp_path, strategy):  # noqa: F811
    one = train(pivot, shards, tmp_path / "one", settings())
    windows = []
    two = train(pivot, shards, tmp_path / "two", settings(processes=2, strategy=strategy), on_window=windows.append)
    assert tuple(windows) == two.windows
    assert_same_result(one, two, (tmp_path / "one", tmp_path / "two"))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_as_two(pivot, shards, tmp_path):  # noqa: F811
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
        settings(processes=2, strategy="fsdp"),
        progress=lambda done, total: steps.append(done),
    )
    assert steps[0] == 5
    assert_same_result(one, two, (tmp_path / "one", tmp_path / "two"))


def test_sigterm_writes_a_checkpoint_that_is_resumed_to_the_same_bytes(pivot, shards, tmp_path):  # noqa: F811
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


def test_sigterm_reaches_the_child(pivot, shards, tmp_path):  # noqa: F811
    def preempt(done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match="wrote a checkpoint"):
        train_in_child(pivot, shards, tmp_path, settings(epochs=400), preempt)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert not (tmp_path / "target").exists()


def test_a_killed_child_is_an_error_that_says_what_to_lower(pivot, shards, tmp_path):  # noqa: F811
    def kill(done: int, total: int) -> None:
        for child in psutil.Process().children():
            child.kill()

    with pytest.raises(TrainingError, match=r"killed by SIGKILL.*micro_batch_tokens"):
        train_in_child(pivot, shards, tmp_path, settings(epochs=400), kill)


@pytest.mark.slow
def test_a_childs_own_error_keeps_its_kind(pivot, shards, tmp_path):  # noqa: F811
    config = settings()
    train(pivot, shards, tmp_path, config.model_copy(update={"checkpoint_steps": 3}))
    with pytest.raises(TrainingError, match="another learning_rate"):
        train_in_child(pivot, shards, tmp_path, settings(learning_rate=1e-3))
