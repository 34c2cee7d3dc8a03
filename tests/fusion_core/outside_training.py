"""What each process runs that torchrun or accelerate launches in a test: FOLDER STRATEGY PIVOT SHARD...

Every machine has a folder of its own; a test's machines are told apart by torchrun's GROUP_RANK.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.fusion_core.training_fixtures import settings, train

if __name__ == "__main__":
    folder, strategy, pivot, *shards = sys.argv[1:]
    assert os.environ["WORLD_SIZE"] == "2"
    machine = Path(folder, f"machine{os.environ.get('GROUP_RANK', '0')}")
    train(Path(pivot), [Path(shard) for shard in shards], machine, settings(strategy=strategy))
