"""What fusing says of sources that add nothing."""

from __future__ import annotations

import logging

import pytest

from fusion_core.alignment.coverage import Counts, Coverage
from tasks.stages.fuse import warn_of_idle_sources


def test_a_source_that_never_wins_is_named_and_one_that_wins_once_is_not(caplog: pytest.LogCaptureFixture) -> None:
    lost, won = Counts(positions=9), Counts(positions=9, positions_won=1)
    with caplog.at_level(logging.WARNING):
        warn_of_idle_sources(Coverage({"idle": {"a": lost, "b": lost}, "useful": {"a": lost, "b": won}}))
    assert [record.getMessage().split(" predicts")[0] for record in caplog.records] == ["Source idle"]
