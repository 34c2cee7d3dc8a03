"""What Prefect and MLflow add to a fusion: ``fuseline run`` against the same stages called directly.

Run ``python -m benchmarks.orchestration``. A tiny recipe (a pivot of 260K parameters, two sources) is fused by the flow
on Prefect's ephemeral server with MLflow on SQLite, and by the stages alone in one process, each in a process and a
home of its own, in turns; then each once more with everything found in the store, where little but the overhead is
left. The clock starts after the imports that both need, and takes in those that only Prefect and MLflow need. The
difference hardly depends on the size of the models, so it is also given as a share of the demo's run. Budget: 5 %.
Processor time, imports and Prefect's server included, tells more than wall time where other work keeps the machine
busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

BUDGET = 0.05
# `make demo` on two cores.
DEMO_SECONDS = 440.0
BOTH = """
import json, sys, time
from pathlib import Path
import torch, transformers
from tasks.environment import configure_libraries, home_folder
configure_libraries(home_folder())
from tasks.plan import stage_addresses
from tasks.stored_fusion import StoredFusion
from fusion_core.recipes import load_recipe
recipe = Path(sys.argv[1])
started = time.perf_counter()
"""
FLOW = """
from flows.command_line.servers_ready import make_ready
make_ready()
from flows.fusechat import fusechat
fusechat(load_recipe(recipe))
"""
DIRECT = """
stored = StoredFusion.open(recipe)
stored.prepare()
stored.extract()
stored.fuse()
stored.train()
stored.merge()
stored.evaluate()
stored.summarize()
"""
END = """
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "stages": len(stage_addresses(StoredFusion.open(recipe).fusion))}))
"""


def main() -> int:
    """Print a row for a run that computes and one for a run that finds all; return 1 above the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each; the median counts (default: 2)")
    rounds = parser.parse_args().rounds
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    stages = 0
    with tempfile.TemporaryDirectory() as name:
        recipe = make_recipe(Path(name) / "recipe")
        for number in range(rounds):
            for way, body in (("flow", FLOW), ("direct", DIRECT)):
                home = Path(name) / f"{way}-{number}"
                for state in ("computed", "found"):
                    seconds, processor, stages = run(body, recipe, home)
                    taken.setdefault((way, state), []).append((seconds, processor))
    headings = ("run", "flow s", "stages alone s", "added s", "a stage s", "of the demo", "added CPU s")
    table = Table(*headings, title="Orchestration")
    shares = []
    for state in ("computed", "found"):
        (flow, flow_cpu), (direct, direct_cpu) = (
            [statistics.median(numbers) for numbers in zip(*taken[way, state], strict=True)]
            for way in ("flow", "direct")
        )
        shares.append((flow - direct) / DEMO_SECONDS)
        cells = (flow, direct, flow - direct, (flow - direct) / stages)
        row = (*(f"{cell:.2f}" for cell in cells), f"{shares[-1]:.1%}", f"{flow_cpu - direct_cpu:.2f}")
        table.add_row(state, *row)
    Console().print(table)
    print(f"{stages} stages; the demo takes {DEMO_SECONDS:.0f} s; budget {BUDGET:.0%}")
    return int(max(shares) > BUDGET)


def run(body: str, recipe: Path, home: Path) -> tuple[float, float, int]:
    """Fuse in a process and a home of their own; return its seconds, processor seconds and number of stages."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    foreign = ("FUSELINE_", "PREFECT_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        [sys.executable, "-c", BOTH + body + END, str(recipe)],
        env=environment | {"FUSELINE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    said = json.loads(done.stdout.strip().splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return said["seconds"], processor, said["stages"]


def make_recipe(folder: Path) -> Path:
    """Make the recipe of the tests: stories260K and two sources with tokenizers of their own."""
    from tests.flows.conftest import STORIES, TEMPLATE, make_lab_source, write_dialogues

    folder.mkdir()
    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    texts = write_dialogues(folder)
    files = "".join(f"    - {{path: {path.name}, domain: {path.stem}}}\n" for path in sorted(folder.glob("*.jsonl")))
    for vocabulary in (400, 700):
        make_lab_source(folder / f"bytes-{vocabulary}", texts, vocabulary)
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        "name: tiny\n"
        f"pivot: {{name: stories, path: {STORIES}, chat_template: template.jinja}}\n"
        "sources:\n"
        "  - {name: bytes-400, path: bytes-400}\n"
        "  - {name: bytes-700, path: bytes-700}\n"
        f"dialogues:\n  files:\n{files}  max_length_tokens: 256\n  held_out_share: 0.4\n"
        "training: {epochs: 1, batch_dialogues: 8, learning_rate: 1.0e-3}\n",
        encoding="utf-8",
    )
    return recipe


if __name__ == "__main__":
    sys.exit(main())
