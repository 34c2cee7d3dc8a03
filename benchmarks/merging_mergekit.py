"""Seconds that mergekit takes for one merge; run by `benchmarks.merging` in an environment that has mergekit.

    PYTHON benchmarks/merging_mergekit.py OUTPUT REPEATS < CONFIG.json

Imports are not counted. The last line printed is the fewest seconds of the repeats.
"""

from __future__ import annotations

import json
import shutil
import sys
import time

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main() -> None:
    """Merge again and again, each time into an empty folder."""
    output, repeats = sys.argv[1], int(sys.argv[2])
    config = MergeConfiguration.model_validate(json.load(sys.stdin))
    options = MergeOptions(lazy_unpickle=True, copy_tokenizer=False, write_model_card=False, quiet=True)
    fewest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run_merge(config, output, options)
        fewest = min(fewest, time.perf_counter() - start)
        shutil.rmtree(output)
    print(fewest)


if __name__ == "__main__":
    main()
