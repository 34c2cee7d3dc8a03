"""Shards: bytes per response position, and how fast they are written and read.

    python -m benchmarks.shards
    python -m benchmarks.shards --shard shard-00000.parquet     # one of your own

Random shards are the hard case: the k largest of V normal logits with ids that are all alike likely, or by Zipf's law.
Rates are of the decoded arrays of `TopK` (4 bytes an id, a log-probability, a label and 8 a dialogue), on one core, by
the process's own time, medians. Budgets: at most 40 bytes a position at k = 10, decoding at 100 MB/s or more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import ndtri

from fusion_core.config import ExtractionConfig
from fusion_core.distributions import TopK
from fusion_core.shards import Shard, ShardMetadata, read_shard, write_shard

BYTES_BUDGET = 40.0
DECODE_BUDGET_MB = 100.0
POSITIONS_PER_DIALOGUE = 200
TABLE_WIDTH = 120


def random_shard(positions: int, vocabulary: int, zipf: bool, k: int = 10) -> Shard:
    """Return a shard of random distributions."""
    random = np.random.default_rng(0)
    if zipf:
        token_ids = np.exp(random.random((positions, k)) * np.log(vocabulary)).astype(np.int32) - 1
    else:
        token_ids = random.integers(0, vocabulary, (positions, k), dtype=np.int32)
    spread = 1 + 2 * random.random((positions, 1))
    logits = -ndtri(np.cumsum(random.exponential(size=(positions, k)), axis=1) / vocabulary) * spread
    log_probs = (logits - np.log(vocabulary) - spread**2 / 2).clip(max=0).astype(np.float32)
    labels = np.where(random.random(positions) < 0.6, log_probs[:, 0], -random.exponential(8, positions))
    splits = np.arange(0, positions + 1, POSITIONS_PER_DIALOGUE, dtype=np.int64)
    dialogues = len(splits) - 1
    return Shard(
        TopK(token_ids, log_probs, labels.astype(np.float32), splits),
        [random.bytes(16).hex() for _ in range(dialogues)],
        ["prose"] * dialogues,
        random.integers(100, 4000, dialogues),
        ShardMetadata("0" * 64, "0" * 64, k),
    )


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median processor time of some rounds."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def main() -> int:
    """Print one row per shard; return 1 when one misses a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=200_000, help="positions of a random shard (default: 200000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts (default: 5)")
    parser.add_argument("--shard", type=Path, action="append", default=[], help="measure this shard too")
    arguments = parser.parse_args()
    cases = {
        f"random, V = {vocabulary:,}, {'Zipf' if zipf else 'uniform'} ids": (vocabulary, zipf)
        for vocabulary in (32_000, 152_000)
        for zipf in (True, False)
    }
    table = Table("shard", "bytes/position", "of budget", "estimate", "encode MB/s", "decode MB/s", "x budget")
    fits = True
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "shard.parquet")
        for title, (vocabulary, zipf) in cases.items():
            estimate = ExtractionConfig().bytes_per_position(vocabulary)
            fits &= _row(table, title, random_shard(arguments.positions, vocabulary, zipf), path, arguments, estimate)
        for own in arguments.shard:
            fits &= _row(table, own.name, read_shard(own), path, arguments, None)
    Console(width=TABLE_WIDTH).print(table)
    return 0 if fits else 1


def _row(
    table: Table, title: str, shard: Shard, path: Path, arguments: argparse.Namespace, estimate: float | None
) -> bool:
    top_k = shard.top_k
    arrays = (top_k.token_ids, top_k.log_probs, top_k.label_log_probs, top_k.row_splits)
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    encode = megabytes / seconds(lambda: write_shard(path, shard), min(arguments.rounds, 3))
    decode = megabytes / seconds(lambda: read_shard(path), arguments.rounds)
    size = path.stat().st_size / top_k.positions
    table.add_row(
        title,
        f"{size:.1f}",
        f"{size / BYTES_BUDGET:.2f}",
        "" if estimate is None else f"{estimate:.1f}",
        f"{encode:.0f}",
        f"{decode:.0f}",
        f"{decode / DECODE_BUDGET_MB:.1f}",
    )
    return size <= BYTES_BUDGET and decode >= DECODE_BUDGET_MB


if __name__ == "__main__":
    sys.exit(main())
