"""The MLflow run of a sweep."""

from __future__ import annotations

import pytest

from fusion_core.errors import TrackingError, TrainingError
from tasks import sweep
from tasks.runs.tracking import Tracking
from tasks.settings import Settings


class Away(Tracking):
    """An MLflow that goes away after a run has been started."""

    def start_run(self, *_: object) -> str:
        return "run"

    def fail_run(self, *_: object) -> None:
        raise TrackingError("MLflow did not answer.")


def test_what_stopped_a_sweep_is_shown_whatever_mlflow_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_tracking", lambda _: Away(Settings(), "fuseline"))
    with pytest.raises(TrainingError, match="not finite"), sweep.sweep_run("mine", []):
        raise TrainingError("The loss is not finite.")
