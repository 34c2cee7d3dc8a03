"""Measures one table, or goes on with it.

    python -m experiments.run TABLE --seeds 0 1 2

Every stage is looked up in the store first, logs to MLflow's experiment `evidence`, and is published when it is
whole: a killed run goes on where it was, and tables share what they have in common. The result is written after
every line, so that a table that is not finished can be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.lab import RECIPE, Entry, Lab, load_lab_recipe
from experiments.logged import logged_table, one_sentence, write
from experiments.results import Key, Results, Row, differences, gather, summary
from experiments.tables import TABLES, Table
from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.report.sweep_table import as_markdown
from tasks.code_version import code_version
from tasks.store.workplace import open_workplace

RESULTS = Path(__file__).parent / "results"


def measure(name: str, table: Table, seeds: Sequence[int], output: Path) -> Results:
    """Score every line of a table with every seed, seed by seed, and write what was found."""
    recipe = load_lab_recipe(table.part, RECIPE.with_name(table.recipe))
    with logged_table(recipe, name) as run:
        results = _measure(name, table, seeds, output, Lab(recipe, run), run)
        open_workplace().tracking(recipe.registry.experiment).log_file(run, output / f"{name}.json")
    return results


def _measure(name: str, table: Table, seeds: Sequence[int], output: Path, lab: Lab, run: str) -> Results:
    given = {lab.recipe.pivot.name, *(source.name for source in lab.recipe.sources)}
    lines: list[tuple[Entry, int | None]] = [(entry, None) for entry in table.entries if entry.model in given]
    lines += [(entry, seed) for seed in seeds for entry in table.entries if entry.model not in given]
    scores: dict[Key, HeldOutScores] = {}
    runs: dict[Key, str] = {}
    for entry, seed in lines:
        found = lab.scores(entry, seed or 0)
        scores[entry.label, seed], runs[entry.label, seed] = found.scores, found.run
        results = collect(name, table, seeds, scores, runs, run)
        write(results, output, name)
        print(f"{entry.label}, seed {seed}: {found.scores.nats_per_byte:.4f} nats per byte", flush=True)
    return results


def collect(
    name: str,
    table: Table,
    seeds: Sequence[int],
    scores: dict[Key, HeldOutScores],
    runs: dict[Key, str],
    run: str,
) -> Results:
    """Put scores into the form that is committed, in the order of the table."""
    nats = gather(scores)
    rows = tuple(
        Row(label=entry.label, seed=seed, nats_per_byte=nats.per_byte(nats_D), run=runs[entry.label, seed])
        for entry in table.entries
        for seed, nats_D in nats.models.get(entry.label, {}).items()
    )
    pairs = [(one, other) for one, other in table.compared if one in nats.models and other in nats.models]
    counts = {domain: int((nats.strata == index).sum()) for index, domain in enumerate(nats.domains)}
    return Results(
        table=name,
        question=table.question,
        seeds=tuple(seeds),
        dialogues=counts,
        rows=rows,
        differences=tuple(found for one, other in pairs for found in differences(nats, one, other)),
        run=run,
        code=str(code_version()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES, help="which table; experiments/README.md says what each asks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="values of training.seed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    arguments = parser.parse_args()
    with one_sentence():
        results = measure(arguments.table, TABLES[arguments.table], arguments.seeds, arguments.out)
    print(as_markdown(summary(results)))


if __name__ == "__main__":
    main()
