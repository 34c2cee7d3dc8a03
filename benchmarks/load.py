"""Memory and time against the number of dialogues, and a store with ten thousand shards.

Run ``python -m benchmarks.load``. Short synthetic dialogues and models of a few thousand weights go through prepare,
extraction, alignment and the first training steps, each stage in a process of its own whose peak memory is noted, for
each number of dialogues in turn (``--dialogues 10000 30000 100000``; ``--plot FILE.svg`` draws the memory). Then a
fusion in shards of one dialogue fills a store with many shards (``--shards 10000``), and planning, listing, finding
everything and going on with all but one shard are timed. Budgets: a stage's peak memory grows by at most 0.5 KB a
dialogue; each of the four takes at most 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fusion_core.report.formats import format_bytes, format_seconds

REPOSITORY = Path(__file__).resolve().parents[1]
BYTES_A_DIALOGUE = 500
MOST_SECONDS = 10.0
STEPS_OF_TRAINING = 4
WORDS = ("the", "a", "red", "small", "old", "river", "house", "word", "light", "make", "take", "find", "give", "when")
STAGES = ("prepare", "extract pivot", "extract source", "fuse", "train")

# One stage of a recipe in this process; training is asked to stop, as by a scheduler, after its first checkpoint.
STAGE = """
import json, os, resource, signal, sys, threading, time
from pathlib import Path
from tasks.environment import configure_libraries, home_folder
configure_libraries(home_folder())
from fusion_core.errors import TrainingInterruptedError
from tasks.stored_fusion import StoredFusion
import torch, transformers
stage, recipe = sys.argv[1], Path(sys.argv[2])
def stop_soon():
    while not list((home_folder() / "work").glob("targets--*/checkpoints/step-*/state.json")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
started = time.perf_counter()
stored = StoredFusion.open(recipe)
if stage == "prepare":
    stored.prepare()
elif stage == "extract pivot":
    stored.extract(["pivot"])
elif stage == "extract source":
    stored.extract(["source"])
elif stage == "fuse":
    stored.fuse()
else:
    threading.Thread(target=stop_soon, daemon=True).start()
    try:
        stored.train()
    except TrainingInterruptedError:
        pass
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak}))
"""
LIST = """
import json, time
from tasks.environment import configure_libraries, home_folder
configure_libraries(home_folder())
from tasks.store.collection import disk_usage, list_artifacts
from tasks.store.workplace import open_workplace
started = time.perf_counter()
store = open_workplace().store
found = list_artifacts(store)
objects = disk_usage(store).objects
print(json.dumps({"seconds": time.perf_counter() - started, "artifacts": len(found), "objects": objects}))
"""

# A command of the command line; starting Python and its imports are not counted.
COMMAND = """
import json, sys, time
from tasks.environment import configure_libraries, home_folder
configure_libraries(home_folder())
import torch, transformers, tasks.stored_fusion, tasks.plan
from flows.command_line import main
started = time.perf_counter()
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print()
print(json.dumps({"seconds": time.perf_counter() - started}))
"""


def main() -> int:
    """Print both tables; return 1 above a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--shards", type=int, default=10_000, help="shards of one dialogue; 0 leaves that part out")
    parser.add_argument("--plot", type=Path, help="draw peak memory against dialogues into this file")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    arguments = parser.parse_args()
    fits = True
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        if arguments.dialogues:
            measured = {count: run_stages(Path(name) / str(count), count) for count in arguments.dialogues}
            figures["stages"] = measured
            fits &= show_stages(measured)
            if arguments.plot is not None:
                draw(measured, arguments.plot)
        if arguments.shards:
            times = many_shards(Path(name) / "shards", arguments.shards)
            figures["shards"] = times
            fits &= show_times(arguments.shards, times)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return int(not fits)


def run_stages(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Run every stage on so many dialogues, each in a process of its own; return seconds and peak bytes."""
    recipe = make_recipe(folder, count, shard_dialogues=2048)
    figures = {}
    for stage in STAGES:
        figures[stage] = python(STAGE, folder, stage, str(recipe))
        print(
            f"{count:>9,} {stage}: {figures[stage]['seconds']:.1f} s, {figures[stage]['peak'] / 1e6:,.0f} MB",
            flush=True,
        )
    shutil.rmtree(folder)
    return figures


def show_stages(measured: Mapping[int, Mapping[str, Mapping[str, float]]]) -> bool:
    """Print peak memory and time; say whether memory grows by no more than the budget."""
    counts = sorted(measured)
    headings = [f"{count:,} dialogues" for count in counts]
    table = Table("stage", *headings, "bytes a dialogue", title="Peak memory, and time")
    fits = True
    for stage in STAGES:
        peaks = [measured[count][stage]["peak"] for count in counts]
        slope = (peaks[-1] - peaks[0]) / max(counts[-1] - counts[0], 1)
        fits &= slope <= BYTES_A_DIALOGUE
        cells = [
            f"{format_bytes(peak)}, {format_seconds(measured[count][stage]['seconds'])}"
            for count, peak in zip(counts, peaks, strict=True)
        ]
        table.add_row(stage, *cells, f"{slope:,.0f}")
    Console(width=140).print(table)
    return fits


def draw(measured: Mapping[int, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw the peak memory of every stage against the number of dialogues."""
    from matplotlib.figure import Figure

    counts = sorted(measured)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for stage in STAGES:
        axes.plot(counts, [measured[count][stage]["peak"] / 1e6 for count in counts], marker="o", label=stage)
    axes.set(xlabel="dialogues", ylabel="peak memory, MB", xscale="log")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def many_shards(folder: Path, count: int) -> dict[str, float]:
    """Fill a store with shards of one dialogue, and time what must not take long with many of them."""
    recipe = make_recipe(folder, count, shard_dialogues=1)
    for stage in ("prepare", "extract pivot"):
        figures = python(STAGE, folder, stage, str(recipe))
        print(f"{count:>9,} shards, {stage}: {figures['seconds']:.1f} s", flush=True)
    times = {
        "plan": command(folder, "plan", str(recipe)),
        "list": python(LIST, folder)["seconds"],
        "find everything": command(folder, "extract", str(recipe), "--model", "pivot"),
    }
    # As a kill leaves it: all shards but one in the store, and no manifest.
    store = folder / "home" / "store"
    (manifest,) = store.glob("distributions/*/*/*/manifest.json")
    last = sorted(manifest.parent.glob("shard-*.parquet"))[-1]
    for path in (manifest, last):
        path.unlink()
        (store / ".sha256" / path.relative_to(store)).unlink()
    times["go on"] = command(folder, "extract", str(recipe), "--model", "pivot")
    assert manifest.is_file() and last.is_file()
    shutil.rmtree(folder)
    return times


def show_times(shards: int, times: Mapping[str, float]) -> bool:
    """Print the times; say whether all are within the budget."""
    table = Table("what", "seconds", title=f"A store with {shards:,} shards")
    for what, seconds in times.items():
        table.add_row(what, f"{seconds:.1f}")
    Console().print(table)
    return max(times.values()) <= MOST_SECONDS


def command(folder: Path, *arguments: str) -> float:
    """Run ``fuseline`` and return its seconds, those of starting Python and its imports taken off."""
    return python(COMMAND, folder, *arguments)["seconds"]


def python(program: str, folder: Path, *arguments: str) -> dict[str, float]:
    """Run a program in a process of its own, in the home beside the recipe, and return what its last line says."""
    foreign = ("FUSELINE_", "PREFECT_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"FUSELINE_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def make_recipe(folder: Path, count: int, shard_dialogues: int) -> Path:
    """Write short dialogues, a pivot and a source with a tokenizer of its own, and the recipe of their fusion."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    with (folder / "dialogues.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            words = draw.choices(WORDS, k=12)
            row = {"question": f"{number} {' '.join(words[:5])}?", "answer": f"{' '.join(words[5:])}."}
            file.write(json.dumps(row) + "\n")
    make_models(folder)
    recipe = folder / "load.yaml"
    recipe.write_text(
        "name: load\n"
        "pivot: {name: pivot, path: pivot, chat_template: template.jinja}\n"
        "sources: [{name: source, path: source, chat_template: template.jinja}]\n"
        "dialogues:\n"
        "  files: [{path: dialogues.jsonl}]\n"
        f"  shard_dialogues: {shard_dialogues}\n"
        "  held_out_limit: 100\n"
        "evaluation: {plain_sft_control: false}\n"
        f"training: {{epochs: 1, checkpoint_steps: {STEPS_OF_TRAINING}}}\n",
        encoding="utf-8",
    )
    return recipe


def make_models(folder: Path) -> None:
    """Save two models of one tiny layer: stories260K's tokenizer, and a byte-level BPE trained here."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.flows.conftest import STORIES, TEMPLATE

    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(WORDS)] * 10, trainer)
    tokenizers = {
        "pivot": AutoTokenizer.from_pretrained(STORIES),
        "source": PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>"),
    }
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


if __name__ == "__main__":
    sys.exit(main())
