from __future__ import annotations

import pytest

from fusion_core import progress
from fusion_core.progress import listen_to_progress, rate_and_time_left, show_progress


def test_rate_and_time_left_are_those_of_the_work_done() -> None:
    assert rate_and_time_left("steps", 10, 40, 5.0) == "10/40 steps, 2.0 steps/s, 15 s left"
    assert rate_and_time_left("steps", 0, 40, 5.0) == "0/40 steps"


def test_plain_lines_come_at_most_every_so_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with show_progress("extract", "positions") as advance:
        for done in range(1, 7):
            advance(done, 6)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_listener_hears_all_progress_within_its_block_and_none_after() -> None:
    heard = []
    with (
        listen_to_progress(lambda title, unit, done, total, _: heard.append((title, unit, done, total))),
        show_progress("train", "steps") as advance,
    ):
        advance(1, 2)
        advance(2, 2)
    with show_progress("later", "steps") as advance:
        advance(1, 1)
    assert heard == [("train", "steps", 1, 2), ("train", "steps", 2, 2)]
