"""How decisions and lineage read on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from fusion_core.report.formats import format_bytes
from tasks.registry.lineage import Lineage, LineageNode
from tasks.registry.promotion import Candidacy

NUMBERS = ("candidate", "other", "better by")
SHORT = 12
# Enough that the words of a gate stay whole in 80 columns; the interval breaks instead.
LEAST_GATE = 14
LINE = 400


def print_decision(candidacy: Candidacy) -> None:
    """Print what every gate saw."""
    console = Console(markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("outcome", no_wrap=True)
    table.add_column("gate", min_width=LEAST_GATE, overflow="fold")
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("interval")
    table.add_column("needed", no_wrap=True)
    for result in candidacy.decision.gates:
        gate, metric, rival, *numbers, outcome = result.cells()
        table.add_row(outcome, f"{gate}: {metric}" + (f" against {rival}" if rival else ""), *numbers)
    champion = f"champion version {candidacy.champion}" if candidacy.champion else "no champion yet"
    console.print(f"{candidacy.model_name} version {candidacy.version}, {champion}")
    console.print(table)


def print_lineage(lineage: Lineage) -> None:
    """Print a version's tree of publications, then models, data, code and packages."""
    # Wide enough for an address in every line: a terminal folds what is longer, and a pipe gets it whole.
    console = Console(markup=False, highlight=False, width=LINE)
    record = lineage.record
    tree = Tree(f"{lineage.model_name} version {lineage.version}, MLflow run {lineage.run}")
    seen: set[str] = set()
    _grow(tree, lineage.tree, seen)
    scores = tree.add("scores")
    for node in lineage.scores:
        scores.add(_label(node))
    console.print(tree)
    console.print()
    for model in record.models:
        place = f"{model.origin} at {model.revision}" if model.revision else model.origin
        console.print(f"{model.role + ':':<9}{model.name}: {place}, digest {model.digest[:SHORT]}, {model.dtype}")
    for file in record.files:
        place = f"{file.origin} at {file.revision}" if file.revision else file.origin
        console.print(f"data:    {place}, domain {file.domain}, SHA-256 {file.digest[:SHORT]}")
    console.print(f"dataset: {record.dataset_digest}")
    console.print(f"code:    {record.code}")
    console.print(f"device:  {record.device}")
    console.print("with:    " + ", ".join(f"{name} {number}" for name, number in record.packages.items()))


def _grow(tree: Tree, node: LineageNode, seen: set[str]) -> None:
    again = " (see above)" if node.address in seen and node.inputs else ""
    branch = tree.add(_label(node) + again)
    if not again:
        seen.add(node.address)
        for below in node.inputs:
            _grow(branch, below, seen)


def _label(node: LineageNode) -> str:
    if not node.held:
        return f"{node.stage} {node.subject}: no longer in the store ({node.address})"
    size = f"{node.shards} shards, " if node.shards else ""
    return f"{node.stage} {node.subject}: {size}{format_bytes(node.bytes)} at {node.address}, run {node.run[:SHORT]}"
