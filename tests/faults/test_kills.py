"""A run that is killed anywhere ends, run again, with the same bytes, and computes nothing twice that was whole."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.fusions import Fusions, check_rerun, is_running, kill_in, kill_tree, wait_until

# In the order of the method; before the first stage there is the start, and after the last one the report.
STAGES = ("start", "prepare held_out", "prepare train", "extract pivot", "extract 400", "extract 700")
STAGES += ("fuse 400", "fuse 700", "train 400", "train 700", "merge", "evaluate pivot", "evaluate 400", "evaluate 700")
STAGES += ("evaluate target 400", "evaluate target 700", "evaluate fused and register")
INSTANTS = 60
TRIALS = 4
# One of each kind of stage comes first.
FIRST = (0, 2, 3, 5, 6, 8, 9, 10, 11, 16)
FIRST_SHARES = {16: 0.8}


@dataclass(frozen=True)
class Instant:
    """A share of the time of one stage of an undisturbed run."""

    number: int
    stage: int
    share: float

    def __str__(self) -> str:
        return f"{self.number:02d}-{STAGES[self.stage].replace(' ', '-')}-{self.share:.2f}"


def draw_instants() -> list[Instant]:
    """Draw instants spread evenly over the stages, the same ones every time."""
    draw = random.Random(11)
    rest = [stage for stage in range(len(STAGES)) if stage not in FIRST]
    stages = [*FIRST, *rest]
    return [Instant(number, stages[number % len(stages)], draw.uniform(0.0, 0.98)) for number in range(INSTANTS)]


def marked(instant: Instant) -> object:
    return pytest.param(instant, marks=() if instant.number < len(FIRST) else (pytest.mark.slow,), id=str(instant))


@pytest.mark.parametrize("instant", [marked(instant) for instant in draw_instants()])
def test_a_kill_at_any_instant_loses_nothing_that_was_whole(
    fusions: Fusions, undisturbed: Undisturbed, instant: Instant
) -> None:
    assert len(undisturbed.timeline.names) == len(STAGES) - 1
    # The undisturbed run may have been slower than this one, or a stage of some milliseconds be over before it is seen:
    # each further trial comes earlier in the stage, the last one at its start.
    for trial in range(TRIALS):
        home = fusions.home(f"kill-{instant}-{trial}")
        pid = fusions.start(home)
        killed = kill_in(home, pid, undisturbed.timeline, instant.stage, instant.share * (1 - trial / (TRIALS - 1)))
        assert fusions.launcher.wait(pid) == (-9 if killed else 0)
        if killed:
            break
    assert killed, f"{TRIALS} runs ended before they could be killed"
    before = home.whole()
    # The last moments belong to a fusion that is finished; run again it is another one that finds everything.
    finished = [status for _, status, fusion in home.mlflow_runs() if fusion] == ["FINISHED"]
    outcome = fusions.run(home, "record_work", str(home.folder / "recorded"))
    check_rerun(home, before, outcome, undisturbed.digests, fusions=1 + finished)


NAMED = {
    "between upload and manifest of dialogues": ("between_upload_and_manifest", "datasets/"),
    "between upload and manifest of distributions": ("between_upload_and_manifest", "distributions/"),
    "between upload and manifest of a target": ("between_upload_and_manifest", "targets/"),
    "between upload and manifest of the merge": ("between_upload_and_manifest", "merged/"),
    "after the manifest of a target": ("after_the_manifest", "targets/"),
    "in the upload of a shard": ("in_an_object", "shard-00001.parquet"),
    "in the upload of a checkpoint": ("in_an_object", "model.safetensors"),
    "in the writing of a manifest": ("in_an_object", "manifest.json"),
    "in the first training checkpoint": ("in_a_checkpoint", "1"),
    "in the second training checkpoint": ("in_a_checkpoint", "2"),
    "in the merge's first write": ("in_a_merge", "1"),
    "in the merge's ninth write": ("in_a_merge", "9"),
    "after the registered model": ("in_a_registration", "create_registered_model"),
    "after the registered version": ("in_a_registration", "create_model_version"),
    "after the alias": ("in_a_registration", "set_registered_model_alias"),
    "before the lock is given back": ("before_the_lock_is_given_back", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_kill_at_a_named_instant_loses_nothing_that_was_whole(
    fusions: Fusions, undisturbed: Undisturbed, name: str
) -> None:
    hook, argument = NAMED[name]
    home = fusions.home(name.replace(" ", "-"))
    assert fusions.run(home, hook, argument).status == -9
    before = home.whole()
    finished = hook == "before_the_lock_is_given_back"
    outcome = fusions.run(home, "record_work", str(home.folder / "recorded"))
    check_rerun(home, before, outcome, undisturbed.digests, fusions=1 + finished)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_a_kill_while_mlflow_makes_its_tables(fusions: Fusions, undisturbed: Undisturbed, seconds: float) -> None:
    home = replace(fusions, template=None).home(f"tables-{seconds}")
    pid = fusions.start(home)
    # They are made in a folder beside the file, and come to its place whole.
    assert wait_until(lambda: bool(list(home.folder.glob("*/mlflow.db"))) or not is_running(pid), 120)
    time.sleep(seconds)
    kill_tree(pid)
    assert fusions.launcher.wait(pid) == -9
    before = home.whole()
    outcome = fusions.run(home, "record_work", str(home.folder / "recorded"))
    check_rerun(home, before, outcome, undisturbed.digests)
