"""What a run's summary says of the run itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fusion_core.config import FusionConfig
from tasks.stages.summarize import _seconds_since_start
from tasks.store.workplace import open_workplace

WEEK = 7 * 24 * 3600.0
RECIPE = {
    "name": "small",
    "pivot": {"name": "pivot", "hub": "someone/pivot"},
    "sources": [{"name": "own", "hub": "someone/own"}],
    "dialogues": {"files": [{"path": "dialogues.jsonl"}]},
}


def test_a_fusion_that_goes_on_after_a_week_is_timed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "FUSELINE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    workplace, config = open_workplace(), FusionConfig.model_validate(RECIPE)
    tracking = workplace.tracking(config.registry.experiment)
    then = time.time() - WEEK
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: then)
        run = tracking.start_run("small", {})
        tracking.end_run(run, "FAILED")
    assert _seconds_since_start(workplace, config, run) >= WEEK
    tracking.continue_run(run)
    assert 0 <= _seconds_since_start(workplace, config, run) < WEEK / 2
