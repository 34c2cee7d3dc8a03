"""What each way of alignment carries over from a source to the pivot's positions and tokens; trains nothing.

    python -m experiments.coverage table4

Legend: N pivot positions, K entries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.alignments import ALIGNMENTS, BYTES, STATISTICS
from experiments.lab import RECIPE, Lab, load_lab_recipe
from experiments.logged import logged_table, one_sentence, write
from experiments.run import RESULTS
from experiments.tables import MORE_SOURCES
from fusion_core.alignment.coverage import Coverage
from fusion_core.record import Record
from fusion_core.shards import Shard, read_shard
from tasks.code_version import code_version
from tasks.stages.extract import extract_distributions
from tasks.stages.fuse import fuse_distributions
from tasks.stages.prepare import prepare_dataset
from tasks.store.manifest import metadata_of
from tasks.store.workplace import computed_by

# Recipe, which of its sources, which ways.
COVERAGES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "table4": ("recipe.yaml", (), tuple(ALIGNMENTS)),
    "table4_more": (MORE_SOURCES, ("maths-own", "dialogue-own", "code"), (BYTES, STATISTICS)),
}


class AlignmentRow(Record):
    """One way of alignment for one source.

    Parameters
    ----------
    covered : float
        Share of the pivot's positions that get a distribution.
    mass_kept : float
        Share of the source's stored mass that arrives there.
    gold : float
        Mean probability of the pivot's next token in what is trained on, entries normalised; 0 where there are none.
    won : float
        Share of the dialogues that the source predicts better than the pivot.
    run : str
        The MLflow run that aligned.
    """

    label: str
    source: str
    covered: float
    mass_kept: float
    gold: float
    won: float
    run: str


class AlignmentResults(Record):
    """All ways for all sources."""

    rows: tuple[AlignmentRow, ...]
    positions: int
    code: str


def gold_probability(shard: Shard) -> float:
    """Mean probability of the next token in what is trained on: entries normalised, nothing where there are none."""
    assert shard.inputs is not None
    starts_N = np.repeat(shard.inputs.input_splits[:-1], np.diff(shard.top_k.row_splits))
    labels_N = shard.inputs.input_ids[starts_N + shard.inputs.response_positions + 1]
    mass_NK = np.exp(shard.top_k.log_probs.astype(np.float64))
    gold_N = np.where(shard.top_k.token_ids == labels_N[:, None], mass_NK, 0.0).sum(axis=1)
    return float((gold_N / np.maximum(mass_NK.sum(axis=1), np.finfo(np.float64).tiny)).mean())


def measure(lab: Lab, sources: Sequence[str], labels: Sequence[str]) -> AlignmentResults:
    """Align sources in several ways."""
    rows, positions = [], 0
    for label in labels:
        fusion = lab.resolve({**ALIGNMENTS[label], **lab.chosen(sources), "fusion.function": "source"}, 0)
        dialogues = prepare_dataset(fusion, lab.run).train
        models = (fusion.pivot, *fusion.sources)
        distributions = {model.name: extract_distributions(fusion, model, dialogues, lab.run) for model in models}
        for group in fusion.groups:
            fused = fuse_distributions(fusion, group, dialogues, distributions, lab.run)
            folder = lab.workplace.folder(fused.address)
            shards = [read_shard(path) for path in sorted(folder.glob("shard-*.parquet"))]
            (domains,) = metadata_of(fused)["coverage"]
            counts = Coverage.from_json({group[0].name: domains}).overall(group[0].name)
            positions = counts.positions
            weights = [shard.top_k.positions for shard in shards]
            rows.append(
                AlignmentRow(
                    label=label,
                    source=group[0].name,
                    covered=1.0 - counts.fallen_back_share,
                    mass_kept=counts.mass_kept,
                    gold=float(np.average([gold_probability(shard) for shard in shards], weights=weights)),
                    won=counts.dialogues_won / counts.dialogues,
                    run=computed_by(fused),
                )
            )
            print(rows[-1], flush=True)
    return AlignmentResults(rows=tuple(rows), positions=positions, code=str(code_version()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    parser.add_argument("table", choices=COVERAGES, nargs="?", default="table4")
    arguments = parser.parse_args()
    output, name = arguments.out, arguments.table
    file, sources, labels = COVERAGES[name]
    recipe = load_lab_recipe("held_out", RECIPE.with_name(file))
    with one_sentence(), logged_table(recipe, name) as run:
        results = measure(Lab(recipe, run), sources, labels)
    write(results, output, name)


if __name__ == "__main__":
    main()
