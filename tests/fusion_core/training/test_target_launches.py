"""Training that torchrun or accelerate starts, on one machine and on two that share no disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_core.ports import free_ports
from tests.conftest import REPOSITORY
from tests.fusion_core.training.test_processes import assert_same_weights
from tests.fusion_core.training_fixtures import settings, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TORCHRUN = ["torch.distributed.run", "--master-addr", "127.0.0.1"]
# Its launcher of several processes is called after GPUs; these train on the processor all the same.
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def start(launcher: list[str], folder: Path, strategy: str, inputs: list[Path]) -> subprocess.Popen:
    ours = ["-m", "tests.fusion_core.outside_training", str(folder), strategy, *map(str, inputs)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", *launcher, *ours]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(started: list[subprocess.Popen]) -> None:
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(outputs)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_of_an_outside_launch(pivot, shards, tmp_path, launcher, strategy):
    port = str(free_ports(1)[0])
    chosen = [*TORCHRUN, "--nproc-per-node", "2", "--master-port", port]
    if launcher == "accelerate":
        chosen = [*ACCELERATE, "--main_process_port", port]
    finish([start(chosen, tmp_path, strategy, [pivot, *shards])])
    train(pivot, shards, tmp_path / "one", settings())
    assert_same_weights(tmp_path / "one", tmp_path / "machine0")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_go_on_from_a_checkpoint_that_one_has(pivot, shards, tmp_path, strategy):
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 5:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train(pivot, shards, tmp_path / "machine0", settings(), progress=cut)
    port = str(free_ports(1)[0])
    nodes = [
        [*TORCHRUN, "--nnodes", "2", "--node-rank", rank, "--nproc-per-node", "1", "--master-port", port]
        for rank in "01"
    ]
    finish([start(node, tmp_path, strategy, [pivot, *shards]) for node in nodes])
    assert not (tmp_path / "machine1/target").exists() and not (tmp_path / "machine1/checkpoints").exists()
    train(pivot, shards, tmp_path / "one", settings())
    assert_same_weights(tmp_path / "one", tmp_path / "machine0")
