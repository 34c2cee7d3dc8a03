"""What a child process of an extraction does: ``python -m fusion_core.extraction.worker``.

Its standard input gives one JSON object a line: the job, then a shard to read whenever it has answered for the one
before. Its events go to the file descriptor in its first argument, one JSON object a line. Nothing more to read means
that there is nothing more to do, or that the parent is gone: it stops, in the middle of a shard too.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion_core.devices import default_device
from fusion_core.errors import FusionError
from fusion_core.extraction.shards import ExtractionJob, ShardExtractor


def main(events: int) -> int:
    """Work off standard input, telling of it on the file descriptor `events`; return the exit status."""

    def tell(event: dict[str, Any]) -> None:
        os.write(events, json.dumps(event).encode() + b"\n")

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    try:
        extractor = ShardExtractor(ExtractionJob.from_json(json.loads(lines.get())), default_device())
        while True:
            task = json.loads(lines.get())
            statistics = extractor.extract(
                Path(task["source"]),
                Path(task["target"]),
                lambda done, total: tell({"progress": [done, total]}),
            )
            tell({"done": asdict(statistics)})
    except FusionError as error:
        tell({"error": type(error).__name__, "message": str(error)})
    except Exception as error:
        traceback.print_exc()
        tell({"error": "ModelError", "message": f"Extraction failed: {type(error).__name__}: {error}."})
    return 1


def _read_lines(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    # Without waiting for what the main thread computes, which nobody would take, and with an engine's own processes.
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
