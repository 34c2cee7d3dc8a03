"""What garbage collection keeps for the registry's sake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.registry import versions
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
from tasks.store.collection_roots import addresses_in_use


def test_every_registered_version_is_a_root_however_many_pages_they_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "FUSELINE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    client = Tracking(Settings(), "fuseline").client
    client.create_registered_model("mine")
    addresses = {f"merged/m/{number}" for number in range(5)}
    for address in addresses:
        client.create_model_version("mine", "file:///m", tags={versions.ADDRESS: address})
    client.create_model_version("mine", "file:///m")
    search = type(client).search_model_versions

    def two_at_once(self: object, wanted: str | None = None, max_results: int = 0, **options: object) -> object:
        return search(self, wanted, max_results=2, **options)

    monkeypatch.setattr(type(client), "search_model_versions", two_at_once)
    assert addresses_in_use([]) == addresses
