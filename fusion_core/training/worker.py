"""What a child process of a training run does: ``python -m fusion_core.training.worker FOLDER EVENTS``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch

from fusion_core.errors import FusionError
from fusion_core.training.interruption import Interruption
from fusion_core.training.job import TrainingJob, TrainingListener
from fusion_core.training.loop import train_in_this_process


def main(folder: Path, events: int) -> int:
    """Run the job in `folder`, telling of it on the file descriptor `events`; return the exit status."""

    def tell(event: dict[str, Any]) -> None:
        os.write(events, json.dumps(event).encode() + b"\n")

    threading.Thread(target=_stop_without_parent, daemon=True).start()
    job = TrainingJob.from_json(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    listener = TrainingListener(
        progress=lambda done, total: tell({"progress": [done, total]}),
        on_window=lambda window: tell({"window": window.as_metadata()}),
        on_checkpoint=lambda folder: tell({"checkpoint": str(folder)}),
    )
    try:
        with Interruption() as interruption:
            report = train_in_this_process(job, listener, interruption)
    except FusionError as error:
        tell({"error": type(error).__name__, "message": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        tell({"error": "TrainingError", "message": f"Training failed: {type(error).__name__}: {error}"})
        return 1
    if os.environ.get("RANK", "0") == "0":
        (folder / "report.json").write_text(json.dumps(report.as_metadata()), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _stop_without_parent() -> None:
    # Nothing of use is written here: the end of standard input means that the parent is gone.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
