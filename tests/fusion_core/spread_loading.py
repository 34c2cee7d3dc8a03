"""What each process runs in a test of how much memory loading takes: FOLDER PIVOT TINY SHARD.

Writes into FOLDER what the process took at its peak, what at rest afterwards, and the bytes of the weights it holds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from fusion_core.config import TrainingConfig
from fusion_core.training.data import FusedShards
from fusion_core.training.devices import accelerated
from fusion_core.training.job import TrainingJob
from fusion_core.training.setup import build_model


def resident_bytes(field: str) -> int:
    """Return VmRSS or VmHWM, its peak, of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * int(next(line for line in status if line.startswith(field)).split()[1])


if __name__ == "__main__":
    folder, pivot, tiny, shard = map(Path, sys.argv[1:])
    config = TrainingConfig(strategy="fsdp", precision="float32")
    device = torch.device("cpu")
    job = TrainingJob(pivot, (shard,), folder / "target", config, folder / "checkpoints", 0.9, device)
    data = FusedShards(job.shards)
    with accelerated(config, device) as accelerator:
        # A tiny model first, so that what libraries take for themselves is there before the measurement.
        small = replace(job, pivot_folder=tiny)
        build_model(small, small.pivot(), data, accelerator)
        before = resident_bytes("VmRSS")
        # Forgets the peak so far.
        Path("/proc/self/clear_refs").write_text("5")
        model = build_model(job, job.pivot(), data, accelerator)[1]
        after = {"peak": resident_bytes("VmHWM") - before, "rest": resident_bytes("VmRSS") - before}
        held = sum(parameter.to_local().nbytes for parameter in model.parameters())
        (folder / f"memory-{accelerator.process_index}.json").write_text(json.dumps({**after, "held": held}))
        accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()
