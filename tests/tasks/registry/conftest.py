"""A registry with two versions to promote, and nothing fused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.registry.versions import ADDRESS
from tasks.runs.tracking import Tracking
from tasks.store.publication import Publication
from tasks.store.workplace import open_workplace
from tests.tasks.promotions import NAME


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two registered versions with small whole publications, in a place of their own."""
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "FUSELINE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    workplace = open_workplace()
    client = Tracking(workplace.settings, "fuseline").client
    client.create_registered_model(NAME)
    made = []
    for address in ("merged/a/1", "merged/b/1"):
        publication = Publication(workplace.store, address)
        (tmp_path / "config.json").write_text("{}")
        publication.add("config.json", tmp_path / "config.json")
        publication.finish(stage="merge", metadata={})
        run = client.create_run("0").info.run_id
        url = workplace.store.url(address)
        made.append(str(client.create_model_version(NAME, url, run_id=run, tags={ADDRESS: address}).version))
    return made
