"""Training as a stage: its checkpoints in the store let another machine go on from where one was lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fusion_core.config import FusionConfig
from fusion_core.models.identity import ResolvedModel, resolve_model
from fusion_core.ports import free_ports
from fusion_core.training.target import train_target
from tasks.addresses import ResolvedFusion
from tasks.stages.train import train_on_fused
from tasks.stages.training_checkpoints import StoredCheckpoints
from tasks.store.folder import FolderStore
from tasks.store.publication import Artifact, Publication, find_artifact
from tests.conftest import REPOSITORY
from tests.fusion_core.training.conftest import pivot, shards  # noqa: F401
from tests.fusion_core.training_fixtures import CPU

TRAINING = {
    "epochs": 2,
    "batch_dialogues": 6,
    "micro_batch_tokens": 96,
    "learning_rate": 3e-3,
    "precision": "float32",
    "checkpoint_steps": 2,
    "keep_checkpoints": 2,
    "checkpoints_in_store": True,
}


def fusion_of(pivot: Path, **training) -> ResolvedFusion:  # noqa: F811
    config = FusionConfig.model_validate(
        {
            "name": "small",
            "pivot": {"name": "pivot", "path": pivot},
            "sources": [{"name": "a", "path": "a"}],
            "dialogues": {"files": [{"path": "data.jsonl"}]},
            "training": {**TRAINING, **training},
        }
    )
    source = ResolvedModel("a", Path("a"), "aa" * 32, "aa" * 32)
    return ResolvedFusion(config, resolve_model(config.pivot), (source,), (), "dd" * 32, "template")


def publish_fused(store: FolderStore, fusion: ResolvedFusion, shards: list[Path]) -> Artifact:  # noqa: F811
    publication = Publication(store, fusion.fused(fusion.sources))
    for shard in shards:
        publication.add(shard.name, shard)
    return publication.finish(stage="fuse", metadata={"shards": [shard.name for shard in shards]})


@contextmanager
def machine(name: str, folder: Path, progress: Callable[[int, int], None]) -> Iterator[None]:
    """A home of its own, beside the store that all machines share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSELINE_HOME", str(folder / name))
        patch.setenv("FUSELINE_STORE", str(folder / "store"))

        @contextmanager
        def shown(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
            yield progress

        patch.setattr("tasks.stages.train.show_progress", shown)
        yield


def checkpoints(store: FolderStore, address: str) -> list[str]:
    keys = [info.key for info in store.list(f"{address}/checkpoints/")]
    return sorted({key.split("/")[-2] for key in keys})


def test_another_machine_goes_on_from_the_store_to_the_same_bytes(pivot, shards, tmp_path):  # noqa: F811
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 6:
            raise PowerCutError

    store = FolderStore(tmp_path / "store")
    fusion = fusion_of(pivot)
    fused = publish_fused(store, fusion, shards)
    address = fusion.target(fusion.sources)
    with machine("one", tmp_path, cut), pytest.raises(PowerCutError):
        train_on_fused(fusion, "target-a", fusion.sources, fused)
    assert find_artifact(store, address) is None
    assert checkpoints(store, address)[-1] == "step-00000004"
    assert len(checkpoints(store, address)) <= 2
    steps: list[int] = []
    with machine("two", tmp_path, lambda done, total: steps.append(done)):
        made = train_on_fused(fusion, "target-a", fusion.sources, fused)
    assert steps == [5, 6, 7]
    assert checkpoints(store, address) == []
    train_target(
        pivot,
        shards,
        tmp_path / "whole",
        fusion.config.training,
        checkpoint_folder=tmp_path / "checkpoints",
        device=CPU,
    )
    published = store.read(f"{made.address}/model.safetensors")
    assert published == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_of_an_outside_launch_train_one_target_that_the_first_publishes(pivot, shards, tmp_path):  # noqa: F811
    store = FolderStore(tmp_path / "store")
    fusion = fusion_of(pivot)
    publish_fused(store, fusion, shards)
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launch += ["--master-port", str(free_ports(1)[0]), "-m", "tests.tasks.outside_train", str(tmp_path), str(pivot)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", *launch], check=True, timeout=250, cwd=tmp_path, env=environment)
    made = find_artifact(store, fusion.target(fusion.sources))
    assert made is not None
    assert (tmp_path / "made0").read_text() == (tmp_path / "made1").read_text() == made.digest
    assert checkpoints(store, made.address) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_process_is_gone_on_from_by_another_machine(pivot, shards, tmp_path):  # noqa: F811
    store = FolderStore(tmp_path / "store")
    # Long enough to be killed in between.
    fusion = fusion_of(pivot, epochs=100, keep_checkpoints=1)
    fused = publish_fused(store, fusion, shards)
    address = fusion.target(fusion.sources)
    script = (
        "import sys; from pathlib import Path;"
        "from tests.tasks.stages.test_train import *; from tasks.stages.train import *;"
        "fusion = fusion_of(Path(sys.argv[1]), epochs=100, keep_checkpoints=1);"
        "fused = find_artifact(open_workplace().store, fusion.fused(fusion.sources));"
        "train_on_fused(fusion, 'target-a', fusion.sources, fused)"
    )
    environment = {**os.environ, "FUSELINE_HOME": str(tmp_path / "one"), "FUSELINE_STORE": str(tmp_path / "store")}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", script, str(pivot)], env=environment, cwd=tmp_path) as doomed:
        while doomed.poll() is None and not any(info.key.endswith("/index.json") for info in store.list(address)):
            time.sleep(0.02)
        doomed.kill()
    assert doomed.returncode == -signal.SIGKILL and find_artifact(store, address) is None
    steps: list[int] = []
    with machine("two", tmp_path, lambda done, total: steps.append(done)):
        made = train_on_fused(fusion, "target-a", fusion.sources, fused)
    assert steps[0] > 2 and steps[-1] == 334
    whole = fusion.config.training
    train_target(pivot, shards, tmp_path / "whole", whole, checkpoint_folder=tmp_path / "checkpoints", device=CPU)
    assert store.read(f"{made.address}/model.safetensors") == (tmp_path / "whole/model.safetensors").read_bytes()


def test_checkpoints_stay_at_home_unless_asked_for(pivot, shards, tmp_path):  # noqa: F811
    store = FolderStore(tmp_path / "store")
    fusion = fusion_of(pivot, checkpoints_in_store=False)
    assert fusion.target(fusion.sources) == fusion_of(pivot).target(fusion.sources)
    fused = publish_fused(store, fusion, shards)
    seen = []

    def look(done: int, total: int) -> None:
        seen.extend(checkpoints(store, fusion.target(fusion.sources)))

    with machine("one", tmp_path, look):
        train_on_fused(fusion, "target-a", fusion.sources, fused)
    assert seen == []


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    for name in ("state.json", "model.safetensors"):
        (checkpoint / name).write_text(f"{name} {step}")
    return checkpoint


def test_a_broken_checkpoint_in_the_store_is_passed_over(tmp_path, caplog):
    store = FolderStore(tmp_path / "store")
    stored = StoredCheckpoints(store, "targets/a/b", keep=2)
    for step in (2, 4, 6):
        stored.put(write_checkpoint(tmp_path / "one", step))
    assert checkpoints(store, "targets/a/b") == ["step-00000004", "step-00000006"]
    store.write("targets/a/b/checkpoints/step-00000006/model.safetensors", b"cut off")
    stored.fetch_newest(tmp_path / "two")
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["step-00000004"]
    assert (tmp_path / "two/step-00000004/model.safetensors").read_text() == "model.safetensors 4"
    assert "step-00000006 in the store is broken" in caplog.text
    # One that was cut off before its index is none, and what this machine has is not fetched again.
    store.write("targets/a/b/checkpoints/step-00000008/state.json", b"{}")
    (tmp_path / "two/step-00000004/model.safetensors").write_text("mine")
    store.delete(["targets/a/b/checkpoints/step-00000006/index.json"])
    stored.fetch_newest(tmp_path / "two")
    assert (tmp_path / "two/step-00000004/model.safetensors").read_text() == "mine"
    stored.remove()
    assert checkpoints(store, "targets/a/b") == []


def test_a_store_that_fails_costs_a_warning(tmp_path, caplog):
    store = FolderStore(tmp_path / "store")
    stored = StoredCheckpoints(store, "targets/a/b", keep=1)
    checkpoint = write_checkpoint(tmp_path / "one", 2)
    (tmp_path / "store/targets").write_text("no folder")
    stored.put(checkpoint)
    assert "Checkpoint step-00000002 stays on this machine alone" in caplog.text
