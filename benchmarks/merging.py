"""Time and memory of every merge method, against plain sequential reading and writing of the same bytes.

    python -m benchmarks.merging                      a pivot and three targets of 1 GB each in bf16
    python -m benchmarks.merging --size-mb 100        smaller
    python -m benchmarks.merging --mergekit PYTHON    beside mergekit, which that Python has

The page cache is warm in all; they are measured in turns, and the fastest run of each is compared: what disturbs a
machine, above all fresh memory for a file, only ever adds time, and adds many times more than either takes. The median
ratio of a merge to the floor after it is shown beside. Memory is the peak resident size of a fresh process per method,
above what it held before the merge; the budget is (targets + 2) times the largest tensor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

TARGETS = 3
BLOCK_BYTES = 8 << 20
SPECS: dict[str, dict[str, object]] = {
    "varm": {},
    "varm, model": {"granularity": "model"},
    "varm, layer": {"granularity": "layer"},
    "varm, module": {"granularity": "module"},
    "varm, parameter": {"granularity": "parameter"},
    "linear": {"method": "linear"},
    "task_arithmetic": {"method": "task_arithmetic", "scaling_coefficient": 0.5},
    "slerp": {"method": "slerp"},
    "ties": {"method": "ties", "density": 0.2},
    "dare, linear": {"method": "dare", "density": 0.1},
    "dare, ties": {"method": "dare", "density": 0.1, "dare_variant": "ties"},
    "sce, all": {"method": "sce"},
    "sce, top 10 %": {"method": "sce", "select_top_k": 0.1},
}
# The same work for mergekit: its method, settings of each model and of all.
MERGEKIT: dict[str, tuple[str, dict[str, float], dict[str, float]]] = {
    "linear": ("linear", {"weight": 1.0}, {}),
    "task_arithmetic": ("task_arithmetic", {"weight": 1.0}, {"lambda": 0.5}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}, {}),
    "dare, linear": ("dare_linear", {"weight": 1.0, "density": 0.1}, {}),
    "dare, ties": ("dare_ties", {"weight": 1.0, "density": 0.1}, {}),
    "sce, all": ("sce", {}, {"select_topk": 1.0}),
    "sce, top 10 %": ("sce", {}, {"select_topk": 0.1}),
}


def main() -> None:
    """Make the checkpoints, measure each method in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1024, help="size of each checkpoint")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of merge and floor per method")
    parser.add_argument("--method", action="append", choices=SPECS, help="only this one; may be given again")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the checkpoints; default: temporary")
    parser.add_argument("--mergekit", type=Path, default=None, help="a Python that has mergekit, to measure it too")
    parser.add_argument("--measure", choices=SPECS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder, arguments.measure, arguments.repeats)))
        return
    folder = Path(tempfile.mkdtemp(prefix="merging-", dir=arguments.folder))
    try:
        largest = make_checkpoints(folder, arguments.size_mb << 20)
        table = Table(title=f"Merging {TARGETS} targets of {arguments.size_mb} MB, bf16")
        columns = ["method", "merge s", "read + write s", "ratio", "median ratio", "peak MB", "of budget"]
        for column in columns + ["mergekit s"] * bool(arguments.mergekit):
            table.add_column(column, justify="left" if column == "method" else "right")
        for name in arguments.method or SPECS:
            command = [sys.executable, "-m", "benchmarks.merging", "--measure", name, "--folder", str(folder)]
            command += ["--repeats", str(arguments.repeats)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            cells = [
                name,
                f"{result['merge_s']:.2f}",
                f"{result['floor_s']:.2f}",
                f"{result['merge_s'] / result['floor_s']:.2f}",
                f"{result['median_ratio']:.2f}",
                f"{result['peak_bytes'] / 2**20:.0f}",
                f"{result['peak_bytes'] / ((TARGETS + 2) * largest):.2f}",
            ]
            if arguments.mergekit:
                cells.append(mergekit_seconds(arguments.mergekit, folder, name, arguments.repeats))
            table.add_row(*cells)
        Console().print(table)
    finally:
        shutil.rmtree(folder)


def make_checkpoints(folder: Path, size_bytes: int) -> int:
    """Write a pivot and targets with a Llama's tensors; return the bytes of the largest tensor."""
    import torch
    from safetensors.torch import save_file

    hidden, vocabulary = (1024, 32_000) if size_bytes >= 256 << 20 else (256, 8_000)
    up = hidden * 11 // 4
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    layer = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (hidden // 4, hidden),
        "self_attn.v_proj.weight": (hidden // 4, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (up, hidden),
        "mlp.up_proj.weight": (up, hidden),
        "mlp.down_proj.weight": (hidden, up),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }

    def count(shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(torch.Size(shape).numel() for shape in shapes.values())

    layers = max(1, round((size_bytes / 2 - count(shapes)) / count(layer)))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": up,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }  # fmt: skip
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    generator = torch.Generator().manual_seed(0)
    pivot = {name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for name, shape in shapes.items()}
    for number in range(TARGETS + 1):
        target = {
            name: tensor + torch.randn(tensor.shape, generator=generator).mul_(1e-3 * number).bfloat16()
            for name, tensor in pivot.items()
        }
        (folder / str(number)).mkdir()
        (folder / str(number) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(target, folder / str(number) / "model.safetensors", metadata={"format": "pt"})
    return 2 * max(tensor.numel() for tensor in pivot.values())


def measure(folder: Path, name: str, repeats: int) -> dict[str, float]:
    """Merge and copy in turns; return the fewest seconds, the median ratio, and the peak memory of merging."""
    from fusion_core.merging import MergeSpec, merge_checkpoints

    pivot, *targets = [folder / str(number) for number in range(TARGETS + 1)]
    inputs = [path / "model.safetensors" for path in (pivot, *targets)]
    read_and_write(inputs, folder / "copy")
    held = memory_bytes("VmRSS")
    merge_seconds, floor_seconds = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        merge_checkpoints(pivot, targets, folder / "merged", MergeSpec.model_validate(SPECS[name]))
        merge_seconds.append(time.perf_counter() - start)
        shutil.rmtree(folder / "merged")
        floor_seconds.append(read_and_write(inputs, folder / "copy"))
    return {
        "merge_s": min(merge_seconds),
        "floor_s": min(floor_seconds),
        "median_ratio": statistics.median(m / f for m, f in zip(merge_seconds, floor_seconds, strict=True)),
        "peak_bytes": memory_bytes("VmHWM") - held,
    }


def mergekit_seconds(python: Path, folder: Path, name: str, repeats: int) -> str:
    """Return mergekit's fewest seconds for the same work, empty where it has no such method."""
    if name not in MERGEKIT:
        return ""
    method, of_models, of_all = MERGEKIT[name]
    config = {
        "merge_method": method,
        "models": [{"model": str(folder / str(n)), "parameters": of_models} for n in range(1, TARGETS + 1)],
        "parameters": of_all,
        # As here: sums in float32, files in bf16.
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if method != "linear":
        config["base_model"] = str(folder / "0")
    script = Path(__file__).with_name("merging_mergekit.py")
    command = [str(python), str(script), str(folder / "mergekit"), str(repeats)]
    answer = subprocess.run(command, input=json.dumps(config), check=True, stdout=subprocess.PIPE, text=True).stdout
    return f"{float(answer.splitlines()[-1]):.2f}"


def read_and_write(inputs: list[Path], output: Path) -> float:
    """Read all inputs once, write as many bytes as the first has, and return the seconds."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    start = time.perf_counter()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    left = inputs[0].stat().st_size
    with output.open("wb", buffering=0) as file:
        while left:
            left -= file.write(buffer[: min(left, BLOCK_BYTES)])
    seconds = time.perf_counter() - start
    output.unlink()
    return seconds


def memory_bytes(field: str) -> int:
    """Return what this process holds now (VmRSS) or held at most (VmHWM); the latter begins anew with a program."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
