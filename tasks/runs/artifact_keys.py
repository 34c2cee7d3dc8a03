"""Keys of the artifacts on Prefect's pages."""

from __future__ import annotations

import re


def artifact_key(name: str) -> str:
    """Return a name as Prefect allows it for a key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
