"""What each process runs that torchrun launches in a test of the stage: FOLDER PIVOT.

Every process has a home of its own, as on machines that share the store alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tasks.stages.train import train_on_fused
from tasks.store.publication import find_artifact
from tasks.store.workplace import open_workplace
from tests.tasks.stages.test_train import fusion_of

if __name__ == "__main__":
    folder, pivot = map(Path, sys.argv[1:])
    rank = os.environ["RANK"]
    os.environ |= {"FUSELINE_HOME": str(folder / f"home{rank}"), "FUSELINE_STORE": str(folder / "store")}
    fusion = fusion_of(pivot)
    fused = find_artifact(open_workplace().store, fusion.fused(fusion.sources))
    assert fused is not None
    # The second finds what the first has made.
    for _ in range(2):
        made = train_on_fused(fusion, "target-a", fusion.sources, fused)
    (folder / f"made{rank}").write_text(made.digest)
