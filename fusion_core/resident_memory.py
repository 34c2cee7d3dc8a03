"""How much memory a process has held."""

from __future__ import annotations

import resource
import sys


def peak_resident_bytes() -> int:
    """Return the most bytes that were resident in this process so far."""
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
