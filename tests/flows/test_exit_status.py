"""Which errors end the command line with which status."""

from __future__ import annotations

import pytest

import flows.command_line as command_line
from fusion_core.errors import ConfigError, TrainingError, TrainingInterruptedError


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError, 2), (TrainingError, 2), (TrainingInterruptedError, command_line.PREEMPTED)]
)
def test_a_preempted_training_may_be_told_from_a_mistake(error, status, monkeypatch, capsys, tmp_path):
    def application() -> None:
        raise error("What happened.")

    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    monkeypatch.setattr(command_line, "application", application)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == status
    assert capsys.readouterr().err == "fuseline: What happened.\n"
