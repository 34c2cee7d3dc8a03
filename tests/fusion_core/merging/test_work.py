"""Jobs on threads: order, room, and that nothing is left waiting when one fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fusion_core.merging import MergeSpec, merge_checkpoints
from fusion_core.merging.varm import Varm
from fusion_core.merging.work import BEGUN_BYTES, Job, run_jobs, threads
from tests.fusion_core.merging.checkpoints import random_pivot, save_all, trained_from


class Recorder:
    """Jobs of two steps that note what is begun and done."""

    def __init__(self, pool: ThreadPoolExecutor):
        self.pool = pool
        self.events: list[str] = []

    def job(self, name: str) -> Job:
        self.events.append(f"{name} begun")
        yield [self.pool.submit(int)]
        yield [self.pool.submit(int), self.pool.submit(int)]
        self.events.append(f"{name} done")


def test_the_next_job_is_begun_before_the_last_is_done() -> None:
    with threads(2) as pool:
        recorder = Recorder(pool)
        finished: list[None] = []
        # Large ones go in pairs.
        run_jobs(((BEGUN_BYTES, recorder.job(name)) for name in "abc"), 2 * BEGUN_BYTES, lambda: finished.append(None))
    assert recorder.events == ["a begun", "b begun", "a done", "c begun", "b done", "c done"]
    assert len(finished) == 3


def test_jobs_hold_no_more_than_there_is_room_for() -> None:
    with threads(2) as pool:
        recorder = Recorder(pool)
        sizes = {"a": 10, "b": 200, "c": 50, "d": 50, "e": 1}
        run_jobs(((size, recorder.job(name)) for name, size in sizes.items()), 100, lambda: None)
    # The one that is larger than all room runs alone.
    before_b = recorder.events[: recorder.events.index("b begun")]
    assert before_b == ["a begun", "a done"]
    assert recorder.events[3] == "b done"
    assert recorder.events[4:6] == ["c begun", "d begun"] and recorder.events.index("c done") < 7


@pytest.mark.timeout(60)
def test_an_error_in_any_thread_ends_all_of_them() -> None:
    before = threading.active_count()

    def fail() -> None:
        raise KeyError("broken")

    def failing(pool: ThreadPoolExecutor) -> Job:
        yield [pool.submit(time.sleep, 0.01) for _ in range(20)] + [pool.submit(fail)]

    with pytest.raises(KeyError), threads(3) as pool:
        recorder = Recorder(pool)
        run_jobs([(1, recorder.job("a")), (1, failing(pool)), (1, recorder.job("b"))], 100, lambda: None)
    assert threading.active_count() == before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", ["weigh", "progress", "write"])
def test_an_error_anywhere_ends_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    pivot = random_pivot(dtype=torch.bfloat16)
    folders = save_all(tmp_path, pivot, [trained_from(pivot, seed) for seed in (1, 2)])

    def fail(*_: object, **__: object) -> None:
        raise KeyError(place)

    if place == "weigh":
        monkeypatch.setattr(Varm, "weigh", fail)
    if place == "write":
        monkeypatch.setattr("fusion_core.merging.writer.CheckpointWriter.write", fail)
    before = threading.active_count()
    for spec in (MergeSpec(), MergeSpec(granularity="layer"), MergeSpec(granularity="parameter")):
        if place == "weigh" and spec.granularity == "parameter":
            continue
        with pytest.raises(KeyError, match=place):
            keywords = {"progress": fail} if place == "progress" else {}
            merge_checkpoints(*folders, tmp_path / "merged", spec, **keywords)
        assert threading.active_count() == before
        assert not [path for path in tmp_path.iterdir() if "merged" in path.name]
