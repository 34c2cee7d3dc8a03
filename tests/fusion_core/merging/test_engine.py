"""Files in and out: formats, shards, precision, broken inputs, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fusion_core.errors import MergeError
from fusion_core.merging import MergeSpec, merge_checkpoints
from fusion_core.merging.output import whole_folder
from tests.fusion_core.merging.checkpoints import Tensors, load, random_pivot, save, save_all, trained_from

Folders = tuple[Path, list[Path]]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    pivot = random_pivot(dtype=torch.bfloat16)
    return save_all(tmp_path, pivot, [trained_from(pivot, seed) for seed in (1, 2)])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_output_is_one_file_with_the_pivots_files_beside(folders: Folders, tmp_path: Path) -> None:
    pivot, targets = folders
    (pivot / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (pivot / "generation_config.json").write_text("{}", encoding="utf-8")
    (pivot / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    (pivot / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (pivot / "README.md").write_text("about the pivot", encoding="utf-8")
    (pivot / "optimizer.pt").write_bytes(b"state")
    report = merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merge_report.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "merged/tokenizer.json").read_text(encoding="utf-8") == '{"version": "1.0"}'
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(report.weights)
    assert list(report.weights) == list(report.statistics)


def test_shards_and_index_hold_every_tensor_once(folders: Folders, tmp_path: Path) -> None:
    merge_checkpoints(*folders, tmp_path / "whole", MergeSpec())
    merge_checkpoints(*folders, tmp_path / "merged", MergeSpec(max_shard_size="1KB"))
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text(encoding="utf-8"))
    whole = load(tmp_path / "whole")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "merged" / file, "pt") as shard:
            assert torch.equal(shard.get_tensor(name), whole[name])
    # A tensor larger than a shard stands alone; the others share within the bound.
    for path in files:
        with safe_open(path, "pt") as shard:
            sizes = [whole[name].nbytes for name in shard.keys()]  # noqa: SIM118
        assert sum(sizes) <= 1000 or len(sizes) == 1


def test_inputs_may_be_sharded_differently(folders: Folders, tmp_path: Path) -> None:
    pivot, targets = folders
    merge_checkpoints(pivot, targets, tmp_path / "expected", MergeSpec())
    tensors = load(targets[0])
    (targets[0] / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, targets[0] / f"part-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (targets[0] / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
    assert bytes_of(tmp_path / "merged") == bytes_of(tmp_path / "expected")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("asked", [None, "float32", "float16", "bfloat16", "float64"])
def test_precision_is_the_pivots_or_the_asked_one(tmp_path: Path, stored: torch.dtype, asked: str | None) -> None:
    pivot = random_pivot(dtype=stored)
    folders = save_all(tmp_path, pivot, [trained_from(pivot, seed) for seed in (1, 2)])
    (folders[0] / "config.json").write_text('{"torch_dtype": "float16"}', encoding="utf-8")
    merge_checkpoints(*folders, tmp_path / "merged", MergeSpec(method="linear", dtype=asked))
    merged = load(tmp_path / "merged")
    targets = [load(folder) for folder in folders[1]]
    for name, tensor in merged.items():
        assert tensor.dtype == (getattr(torch, asked) if asked else stored)
        expected = ((targets[0][name].double() + targets[1][name].double()) / 2).to(tensor.dtype)
        torch.testing.assert_close(tensor, expected, rtol=torch.finfo(tensor.dtype).eps, atol=1e-6)
    config = json.loads((tmp_path / "merged/config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == (asked or "float16")


def test_float64_is_not_cut_to_float32(tmp_path: Path) -> None:
    pivot = {"w": torch.zeros(2, dtype=torch.float64)}
    target = {"w": torch.tensor([1.0 + 1e-12, 2.0], dtype=torch.float64)}
    merge_checkpoints(*save_all(tmp_path, pivot, [target]), tmp_path / "merged", MergeSpec(method="linear"))
    assert load(tmp_path / "merged")["w"].tolist() == target["w"].tolist()


def test_bf16_is_rounded_to_nearest_even(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    targets: list[Tensors] = [{"w": torch.randn(5000, generator=generator).bfloat16()} for _ in range(2)]
    folders = save_all(tmp_path, {"w": torch.zeros(5000).bfloat16()}, targets)
    merge_checkpoints(*folders, tmp_path / "merged", MergeSpec(method="linear"))
    expected = ((targets[0]["w"].double() + targets[1]["w"].double()) / 2).bfloat16()
    assert torch.equal(load(tmp_path / "merged")["w"], expected)


def test_buffers_are_copied_when_equal_and_refused_when_not(tmp_path: Path) -> None:
    buffers = {"mask": torch.tensor([True, False, True]), "position_ids": torch.arange(5)}
    pivot = random_pivot() | buffers
    targets = [trained_from(random_pivot(), seed) | buffers for seed in (1, 2)]
    report = merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", MergeSpec())
    merged = load(tmp_path / "merged")
    assert torch.equal(merged["mask"], buffers["mask"]) and torch.equal(merged["position_ids"], torch.arange(5))
    assert "mask" not in report.weights
    targets[1]["position_ids"] = torch.arange(5) + 1
    folders = save_all(tmp_path, pivot, targets)
    with pytest.raises(MergeError, match=r"position_ids is of type I64.*target-1.*other values"):
        merge_checkpoints(*folders, tmp_path / "refused", MergeSpec())
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nan_or_infinity_names_tensor_and_file(tmp_path: Path, value: float, broken: int, dtype: torch.dtype) -> None:
    pivot = random_pivot(dtype=dtype)
    models = [pivot, trained_from(pivot, 1), trained_from(pivot, 2)]
    models[broken] = {name: tensor.clone() for name, tensor in models[broken].items()}
    models[broken]["model.norm.weight"][7] = value
    folders = save_all(tmp_path, models[0], models[1:])
    file = [folders[0], *folders[1]][broken] / "model.safetensors"
    for spec in (MergeSpec(), MergeSpec(granularity="layer"), MergeSpec(method="ties", density=0.5)):
        with pytest.raises(MergeError) as caught:
            merge_checkpoints(*folders, tmp_path / "merged", spec)
        assert "model.norm.weight" in str(caught.value) and str(file) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []


@pytest.mark.parametrize(
    "spec",
    [MergeSpec(), MergeSpec(granularity="parameter"), MergeSpec(method="dare", density=0.3), MergeSpec(method="slerp")],
    ids=lambda spec: f"{spec.method}-{spec.granularity}",
)
def test_the_rerun_gives_the_same_bytes(folders: Folders, tmp_path: Path, spec: MergeSpec) -> None:
    merge_checkpoints(*folders, tmp_path / "merged", spec)
    first = bytes_of(tmp_path / "merged")
    report = merge_checkpoints(*folders, tmp_path / "merged", spec)
    assert bytes_of(tmp_path / "merged") == first
    assert first["merge_report.json"].decode() == report.to_json()


def test_number_of_threads_changes_nothing(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for threads in (1, 3):
        monkeypatch.setattr("fusion_core.merging.streaming.thread_count", lambda threads=threads: threads)
        for number, spec in enumerate((MergeSpec(granularity="parameter"), MergeSpec(method="sce", select_top_k=0.3))):
            merge_checkpoints(*folders, tmp_path / f"merged-{number}", spec)
        outputs.append([bytes_of(tmp_path / f"merged-{number}") for number in range(2)])
    assert outputs[0] == outputs[1]


def test_a_kill_leaves_no_output_and_the_rerun_clears_up(folders: Folders, tmp_path: Path) -> None:
    pivot, targets = folders
    merge_checkpoints(pivot, targets, tmp_path / "expected", MergeSpec())
    # The progress callback stops the merge in its middle, with files half written.
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom fusion_core.merging import *\n"
        "def wait(done, total):\n    print(done, flush=True)\n    time.sleep(60)\n"
        "pivot, *targets, output = map(Path, sys.argv[1:])\n"
        "merge_checkpoints(pivot, targets, output, MergeSpec(), progress=wait)\n"
    )
    command = [sys.executable, "-c", script, str(pivot), *map(str, targets), str(tmp_path / "merged")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(MergeError, match="Another merge writes"):
            merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "merged").exists()
    assert (tmp_path / ".merged.partial").exists()
    time.sleep(0.05)
    merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
    assert not (tmp_path / ".merged.partial").exists()
    assert bytes_of(tmp_path / "merged") == bytes_of(tmp_path / "expected")


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_folder(tmp_path / "output") as folder:
        (folder / "half").write_text("x", encoding="utf-8")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_not_replaced(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(MergeError, match="is no earlier merge"):
        merge_checkpoints(*folders, tmp_path / "mine", MergeSpec())
    with pytest.raises(MergeError, match="one of the inputs"):
        merge_checkpoints(*folders, folders[0], MergeSpec())
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_progress_ends_at_the_total(folders: Folders, tmp_path: Path) -> None:
    for spec, passes in ((MergeSpec(), 1), (MergeSpec(granularity="model"), 2)):
        seen: list[tuple[int, int]] = []
        merge_checkpoints(*folders, tmp_path / "merged", spec, progress=lambda *step, seen=seen: seen.append(step))
        count = passes * len(load(folders[0]))
        assert seen == [(done, count) for done in range(1, count + 1)]


def test_empty_and_odd_tensors_pass_through(tmp_path: Path) -> None:
    pivot = {"empty": torch.zeros(0, 4), "odd": torch.zeros(3, dtype=torch.uint8), "w": torch.ones(5)}
    targets = [pivot | {"w": torch.full((5,), 2.0)}]
    for spec in (MergeSpec(), MergeSpec(method="ties", density=0.5), MergeSpec(method="sce", select_top_k=0.5)):
        merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
        merged = load(tmp_path / "merged")
        assert merged["empty"].shape == (0, 4) and merged["odd"].tolist() == [0, 0, 0]


def test_no_targets_wrong_weights_and_missing_gpu_are_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="at least one target"):
        merge_checkpoints(folders[0], [], tmp_path / "merged", MergeSpec())
    with pytest.raises(MergeError, match="`weights` has 3 numbers for 2 targets"):
        merge_checkpoints(*folders, tmp_path / "merged", MergeSpec(method="linear", weights=(1, 1, 1)))
    with pytest.raises(MergeError, match="`t` lies between two targets and there are 1"):
        merge_checkpoints(folders[0], folders[1][:1], tmp_path / "merged", MergeSpec(method="slerp", t=0.3))
    if not torch.cuda.is_available():
        with pytest.raises(MergeError, match="set `device: cpu`"):
            merge_checkpoints(*folders, tmp_path / "merged", MergeSpec(device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["varm", "linear", "task_arithmetic", "slerp", "ties", "dare", "sce"])
def test_the_gpu_gives_what_the_processor_gives(folders: Folders, tmp_path: Path, method: str) -> None:
    settings = {"dare": {"density": 0.5}, "ties": {"density": 0.3}, "sce": {"select_top_k": 0.2}}.get(method, {})
    merge_checkpoints(*folders, tmp_path / "cpu", MergeSpec(method=method, **settings))
    merge_checkpoints(*folders, tmp_path / "gpu", MergeSpec(method=method, device="cuda", **settings))
    torch.testing.assert_close(load(tmp_path / "gpu"), load(tmp_path / "cpu"), rtol=2**-7, atol=1e-6)


def test_truncated_and_missing_files_are_named(folders: Folders, tmp_path: Path) -> None:
    pivot, targets = folders
    with pytest.raises(MergeError, match="does not exist"):
        merge_checkpoints(pivot, [tmp_path / "nowhere"], tmp_path / "merged", MergeSpec())
    (tmp_path / "empty").mkdir()
    with pytest.raises(MergeError, match=r"has no \*\.safetensors"):
        merge_checkpoints(pivot, [tmp_path / "empty"], tmp_path / "merged", MergeSpec())
    whole = (targets[1] / "model.safetensors").read_bytes()
    for content, problem in ((whole[:-10], "lies beyond its end"), (whole[:20], "is cut off"), (b"", "is cut off")):
        (targets[1] / "model.safetensors").write_bytes(content)
        with pytest.raises(MergeError, match=rf"target-1/model.safetensors.*{problem}"):
            merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
    (targets[1] / "model.safetensors").unlink()
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (targets[1] / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(MergeError, match="which is not there"):
        merge_checkpoints(pivot, targets, tmp_path / "merged", MergeSpec())
    save(tmp_path / "twice", {"w": torch.zeros(1)})
    (tmp_path / "twice/model.safetensors").rename(tmp_path / "twice/a.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "twice/b.safetensors")
    with pytest.raises(MergeError, match=r"both in a\.safetensors and in b\.safetensors"):
        merge_checkpoints(tmp_path / "twice", [pivot], tmp_path / "merged", MergeSpec())
