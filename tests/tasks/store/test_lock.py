"""The store's lock: one owner at a time, whoever dies, on either kind of store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tasks.store import lock as store_lock
from tasks.store.folder import FolderStore
from tasks.store.interface import Store
from tasks.store.lock import LockedError, StoreLock, held, owner_is_gone

SILENCE = 0.6


def test_one_owner_and_nothing_left_behind(store: Store) -> None:
    first, second = StoreLock(store, "a"), StoreLock(store, "a")
    assert first.try_acquire()
    assert not second.try_acquire()
    first.require()
    first.release()
    assert second.try_acquire()
    second.release()
    assert list(store.list("locks")) == []


def test_waiting_ends_when_the_owner_releases(folder_store: FolderStore) -> None:
    first, second = StoreLock(folder_store, "a"), StoreLock(folder_store, "a")
    assert first.try_acquire()
    threading.Timer(0.3, first.release).start()
    assert second.try_acquire(wait_seconds=20)
    second.release()


def test_one_that_was_taken_for_dead_leaves_the_lock_to_a_later_owner_of_the_same_number(
    folder_store: FolderStore,
) -> None:
    first, third = StoreLock(folder_store, "a"), StoreLock(folder_store, "a")
    assert first.try_acquire()
    # A second owner took over meanwhile, and released.
    folder_store.delete(["locks/a/00000001"])
    assert third.try_acquire()
    with pytest.raises(LockedError):
        first.require()
    first.release()
    third.require()
    third.release()


class LostAnswers(FolderStore):
    """A store whose answer to a first write is lost, so that its repetition is told that something is there."""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        return super().write(key, data, if_absent=if_absent) and not if_absent


def test_a_lock_whose_answer_was_lost_is_its_writers(folder_store: FolderStore) -> None:
    lock = StoreLock(LostAnswers(folder_store.root), "a")
    assert lock.try_acquire()
    lock.require()
    assert not StoreLock(folder_store, "a").try_acquire()
    lock.release()
    assert list(folder_store.list("locks")) == []


def test_an_abandoned_lock_is_as_a_killed_process_leaves_it(store: Store) -> None:
    lock = StoreLock(store, "a")
    assert lock.try_acquire()
    lock.abandon()
    assert owner_is_gone(store, "a")
    with held(store, "a", "It is busy", 0.0), pytest.raises(LockedError):
        lock.require()
    assert list(store.list("locks")) == []


def elsewhere(store: Store, renewals: int) -> None:
    """Write as an owner on another machine would."""
    content = {"host": "another machine", "pid": 1, "started": 0.0, "renewals": renewals}
    store.write("locks/a/00000003", json.dumps(content).encode())


def test_a_silent_owner_elsewhere_is_taken_for_dead(folder_store: FolderStore) -> None:
    elsewhere(folder_store, 0)
    lock = StoreLock(folder_store, "a", SILENCE)
    assert lock.try_acquire()
    assert [info.key for info in folder_store.list("locks")] == ["locks/a/00000004"]
    lock.release()


def test_an_owner_elsewhere_that_renews_keeps_it(folder_store: FolderStore) -> None:
    elsewhere(folder_store, 0)
    stop = threading.Event()

    def renew() -> None:
        count = 0
        while not stop.wait(SILENCE / 4):
            count += 1
            elsewhere(folder_store, count)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        assert not StoreLock(folder_store, "a", SILENCE).try_acquire(wait_seconds=3 * SILENCE)
    finally:
        stop.set()
        thread.join()


def test_of_many_who_find_a_dead_owner_one_gets_it(store: Store) -> None:
    elsewhere(store, 0)
    locks = [StoreLock(store, "a", SILENCE) for _ in range(4)]
    got: list[bool] = []
    threads = [threading.Thread(target=lambda lock=lock: got.append(lock.try_acquire())) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(True) == 1
    for lock in locks:
        lock.release()


def test_who_was_taken_for_dead_finds_out(folder_store: FolderStore) -> None:
    first = StoreLock(folder_store, "a")
    assert first.try_acquire()
    folder_store.write("locks/a/00000002", b"{}")
    with pytest.raises(LockedError, match="lost"):
        first.require()


def test_a_killed_process_of_this_machine_is_seen_at_once(folder_store: FolderStore, tmp_path: Path) -> None:
    program = f"""
        import time
        from pathlib import Path
        from tasks.store.folder import FolderStore
        from tasks.store.lock import StoreLock
        lock = StoreLock(FolderStore(Path({str(folder_store.root)!r})), "a")
        assert lock.try_acquire()
        print("held", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert not owner_is_gone(folder_store, "a")
    with pytest.raises(LockedError, match=r"It is busy; wait"), held(folder_store, "a", "It is busy", 0.0):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert owner_is_gone(folder_store, "a")
    started = time.monotonic()
    with held(folder_store, "a", "It is busy", 0.0):
        assert time.monotonic() - started < store_lock.SILENCE_SECONDS
