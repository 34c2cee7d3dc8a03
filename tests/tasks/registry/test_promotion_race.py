"""Promotions that meet: two processes, one model, one champion."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from tasks.registry.mlmodel import publish_loading_files
from tasks.registry.promotion import PromotionError, move_champion
from tasks.registry.versions import CHAMPION, version_by_alias
from tasks.runs.tracking import Tracking
from tasks.store.workplace import open_workplace
from tests.tasks.promotions import NAME, candidacy

PROGRAM = """
    import sys, time
    from pathlib import Path
    from tasks.registry.promotion import PromotionError, move_champion
    from tasks.store.lock import LockedError
    from tests.tasks.promotions import candidacy
    version, ready, go = sys.argv[1:]
    Path(ready).touch()
    while not Path(go).exists():
        time.sleep(0.01)
    try:
        print(move_champion(candidacy({name!r}, version, None)).outcome)
    except (PromotionError, LockedError) as error:
        print(f"lost: {{error}}")
"""


def test_two_processes_end_in_one_champion(versions: list[str], tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = textwrap.dedent(PROGRAM.format(name=NAME))
    ready = [tmp_path / f"ready-{version}" for version in versions]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, version, str(mark), str(go)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        for version, mark in zip(versions, ready, strict=True)
    ]
    while not all(mark.exists() for mark in ready):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        ready[0].parent.stat()
    go.touch()
    printed = [process.communicate(timeout=120) for process in processes]
    said = [out.strip() for out, _ in printed]
    assert Counter(line.partition(":")[0] for line in said) == {"promoted": 1, "lost": 1}, printed
    winner = versions[said.index("promoted")]
    workplace = open_workplace()
    assert version_by_alias(Tracking(workplace.settings, "fuseline").client, NAME, CHAMPION) == winner
    assert any(f"the champion is version {winner} and was none" in line for line in said)
    assert list(workplace.store.list("locks")) == []


def test_a_checkpoint_that_is_gone_does_not_become_champion(versions: list[str]) -> None:
    store = open_workplace().store
    store.delete(["merged/a/1/config.json"])
    with pytest.raises(PromotionError, match=r"config\.json: it is missing from the store"):
        move_champion(candidacy(NAME, versions[0], None))


def test_loading_files_lie_beside_the_manifest_and_go_with_it(versions: list[str], tmp_path: Path) -> None:
    from tasks.store.collection import collect_garbage
    from tasks.store.contents import read_contents

    store = open_workplace().store
    (tmp_path / "tokenizer.json").write_text("{}")
    publish_loading_files(store, "merged/a/1", tmp_path)
    assert store.exists("merged/a/1/MLmodel") and store.exists("merged/a/1/components/tokenizer/tokenizer.json")
    assert read_contents(store).strays == ()
    collect_garbage(store, ["merged/b/1"], delete=True, older_than_seconds=0)
    assert {info.key.rsplit("/", 1)[0] for info in store.list()} == {"merged/b/1"}
