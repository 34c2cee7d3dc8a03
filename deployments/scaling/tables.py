"""The tables of docs/scaling.md, from the cost model of ``fuseline plan``.

Run as ``python -m deployments.scaling.tables``. Every dialogue counts at its full length, all of it response: that is
what a plan takes for data that it does not fetch, and an upper bound. GPU time is FLOPs over an H100's dense BF16 rate
times the shares that the planner assumes; it was not measured.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from fusion_core.config import FusionConfig
from fusion_core.planning import DeviceThroughput, EncodedCounts, ModelSize, Plan, plan_costs
from fusion_core.recipes import load_recipe
from fusion_core.report.formats import format_bytes, format_count

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
RECIPES = Path(__file__).resolve().parent
DIALOGUES = (100_000, 10_000_000, 1_000_000_000)
CATALOGUE = 500
H100 = DeviceThroughput(
    name="H100 SXM, by its data sheet",
    kind="cuda",
    flops_per_second={"bfloat16": 989e12, "float32": 67e12},
    memory_bytes=80 * 10**9,
)
# Measured: `benchmarks.alignment`, bytes mode, one core; `benchmarks.store`, one stream to a server on loopback.
ALIGNED_POSITIONS_PER_SECOND = 570_000
UPLOAD_BYTES_PER_SECOND = 180e6
DOWNLOAD_BYTES_PER_SECOND = 600e6
# Of the S3 store: what one request carries, and from which size on a file is sent in parts.
PART_BYTES, RANGE_BYTES, WHOLE_BYTES = 16 * 2**20, 8 * 2**20, 128 * 2**20
# What one entry of a manifest takes, as written for a shard.
MANIFEST_ENTRY_BYTES = 200


def recipe(name: str) -> FusionConfig:
    """Return one of the recipes beside this file, or the catalogue: the 7B pivot with 500 sources of its own size."""
    if name != "catalogue":
        return load_recipe(RECIPES / f"{name}.yaml")
    seven = recipe("seven").model_dump(exclude_unset=True)
    sources = [
        {"name": f"source-{number}", "hub": f"catalogue/{number}", "parameters": seven["pivot"]["parameters"]}
        for number in range(CATALOGUE)
    ]
    return FusionConfig.model_validate(seven | {"name": "catalogue", "sources": sources})


def plan_for(config: FusionConfig, dialogues: int) -> Plan:
    """Return the plan of a recipe for so many dialogues on one H100, bounded as `fuseline plan` does."""
    sizes = {}
    for model in (config.pivot, *config.sources):
        assert model.parameters is not None
        active = model.active_parameters or model.parameters
        sizes[model.name] = ModelSize(name=model.name, parameters=model.parameters, active_parameters=active)
    held_out = config.dialogues.held_out_share
    train, scored = (
        dict.fromkeys(sizes, _bound(dialogues, share, config.dialogues.max_length_tokens))
        for share in (1 - held_out, held_out)
    )
    return plan_costs(config, models=sizes, train=train, held_out=scored, device=H100, fast_bfloat16=True)


def gpu_hours(plan: Plan, *stages: str) -> float:
    """Sum the hours of some stages on one H100."""
    return sum(row.seconds or 0.0 for row in plan.rows if row.stage in stages) / 3600


def stored_bytes(plan: Plan, *stages: str) -> int:
    """Sum what some stages write."""
    return sum(row.bytes or 0 for row in plan.rows if row.stage in stages)


def shard_requests(config: FusionConfig, dialogues: int, bytes_per_position: int) -> tuple[int, int, int]:
    """Return shards of one publication, the requests that write it, and those that read it once.

    A shard is asked for, then put: in one piece up to 128 MiB, above in parts of 16 MiB with a request before and
    after. It is read in ranges of 8 MiB after one request for its size. A publication lists its objects and puts a
    manifest.
    """
    each = config.dialogues.shard_dialogues
    shards = math.ceil(dialogues * (1 - config.dialogues.held_out_share) / each)
    size = each * config.dialogues.max_length_tokens * bytes_per_position
    puts = 1 if size <= WHOLE_BYTES else math.ceil(size / PART_BYTES) + 2
    writing = shards * (1 + puts) + math.ceil(shards / 1000) + 1
    return shards, writing, shards * (1 + math.ceil(size / RANGE_BYTES))


def costs_table(name: str) -> str:
    """Return what a fusion costs for each number of dialogues."""
    config = recipe(name)
    targets = len(config.sources)
    lines = [
        "| dialogues | extract, GPU h | train, GPU h | evaluate, GPU h | align, core h | distributions | fused | "
        "checkpoints | shards a model | requests |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for dialogues in DIALOGUES:
        plan = plan_for(config, dialogues)
        positions = next(row.positions or 0 for row in plan.rows if row.stage == "fuse")
        aligned = targets * positions / ALIGNED_POSITIONS_PER_SECOND / 3600
        shards, written, read = shard_requests(config, dialogues, 40)
        # Every model's shards are written once, and read for alignment; a fused set is written, and read by training.
        requests = (targets + 1) * written + 2 * targets * read + targets * (written + read)
        cells = [
            format_count(dialogues),
            *(_hours(gpu_hours(plan, stage)) for stage in ("extract", "train", "evaluate")),
            _hours(aligned),
            *(_bytes(stored_bytes(plan, *stages)) for stages in (("extract",), ("fuse",), ("train", "merge"))),
            f"{shards:,}",
            format_count(requests),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_table() -> str:
    """Return what one process needs to hold where a model is read and where it is trained."""
    lines = [
        "| recipe | read the largest model | train a target, all weights | H100s that hold it |",
        "|---|---:|---:|---:|",
    ]
    for name in ("seven", "seventy"):
        rows = plan_for(recipe(name), DIALOGUES[0]).rows
        reading = max(row.memory_bytes or 0 for row in rows if row.stage == "extract")
        training = max(row.memory_bytes or 0 for row in rows if row.stage == "train")
        cards = math.ceil(training / H100.memory_bytes)
        lines.append(f"| `{name}.yaml` | {format_bytes(reading)} | {format_bytes(training)} | {cards} |")
    return "\n".join(lines)


def saturation_table() -> str:
    """Return, for one model of the 7B recipe, how long each part of the house is busy with its shards."""
    config = recipe("seven")
    lines = [
        "| dialogues | bytes | one upload stream | one download stream | one core aligns | manifest |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for dialogues in DIALOGUES:
        plan = plan_for(config, dialogues)
        size = stored_bytes(plan, "extract") / (len(config.sources) + 1)
        positions = next(row.positions or 0 for row in plan.rows if row.stage == "extract")
        shards, _, _ = shard_requests(config, dialogues, 40)
        hours = (
            size / UPLOAD_BYTES_PER_SECOND,
            size / DOWNLOAD_BYTES_PER_SECOND,
            positions / ALIGNED_POSITIONS_PER_SECOND,
        )
        lines.append(
            f"| {format_count(dialogues)} | {format_bytes(size)} | "
            + " | ".join(f"{seconds / 3600:,.2f} h" for seconds in hours)
            + f" | {format_bytes(shards * MANIFEST_ENTRY_BYTES)} |"
        )
    return "\n".join(lines)


def added_source_table() -> str:
    """Return what one more source costs beside 500 of its size: its own share, and a merge of all targets."""
    config = recipe("catalogue")
    lines = [
        "| dialogues | extract, GPU h | train, GPU h | merge reads | merge, by the plan |",
        "|---:|---:|---:|---:|---:|",
    ]
    for dialogues in DIALOGUES:
        rows = plan_for(config, dialogues).rows
        newest = config.sources[-1].name
        hours = {row.stage: (row.seconds or 0.0) / 3600 for row in rows if row.subject in (newest, "fused")}
        read = (CATALOGUE + 1) * next(row.bytes or 0 for row in rows if row.stage == "merge")
        cells = (_hours(hours["extract"]), _hours(hours["train"]), _bytes(read), f"{_hours(hours['merge'])} h")
        lines.append(f"| {format_count(dialogues)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {
    "seven": lambda: costs_table("seven"),
    "seventy": lambda: costs_table("seventy"),
    "catalogue": lambda: costs_table("catalogue"),
    "added": added_source_table,
    "memory": memory_table,
    "saturation": saturation_table,
}


def with_tables(page: str) -> str:
    """Return the page with every table between ``<!-- table NAME -->`` and ``<!-- end -->`` written anew."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", fill, page, flags=re.DOTALL)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}"


def _bytes(count: float) -> str:
    return f"{count / 1e15:,.1f} PB" if count >= 1e15 else format_bytes(count)


def _bound(dialogues: int, share: float, length: int) -> EncodedCounts:
    count = round(dialogues * share)
    return EncodedCounts(
        dialogues=count,
        tokens=count * length,
        squared_tokens=count * length**2,
        positions=count * length,
        longest=length,
        counted=0,
        exact=False,
    )


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
