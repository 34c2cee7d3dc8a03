"""A lock in the object store, for what must have one owner among the processes of several machines.

A lock is a row of generations, `locks/<name>/<number>`, each put there only if it is absent; the highest one is the
owner's. An owner renews its object from time to time. Whoever waits and sees the same bytes for longer than an owner
may be silent puts the next generation, which exactly one of several can do. An owner on this machine whose process is
gone is seen at once. Clocks are not compared, and an owner that was taken for dead finds out by asking `require`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from fusion_core.errors import FusionError, StoreError
from tasks.store.interface import MissingObjectError, Store
from tasks.store.owners import host, process_lives, start_of_this_process

logger = logging.getLogger(__name__)

FOLDER = "locks"
GENERATION = re.compile(r"[0-9]{8}")
SILENCE_SECONDS = 30.0
RENEWALS_IN_SILENCE = 4
LOOK_SECONDS = 0.2


class LockedError(FusionError):
    """Somebody else owns what only one may have."""


class StoreLock:
    """One process's hold on a name; renewed by a thread of its own until it is released.

    Parameters
    ----------
    store : Store
    name : str
        Such as 'promotion-mine'; a part of a key.
    silence_seconds : float
        How long an owner may be silent before others take it for dead.
    """

    def __init__(self, store: Store, name: str, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.name = name
        self._store = store
        self._prefix = f"{FOLDER}/{name}/"
        self._silence = silence_seconds
        self._number = 0
        self._renewals = 0
        self._owner = {"owner": uuid.uuid4().hex, **_this_process()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def try_acquire(self, wait_seconds: float = 0.0) -> bool:
        """Take the lock and return True; False when its owner still shows life after `wait_seconds`.

        An owner on another machine that shows no life is waited for as long as it may be silent.
        """
        deadline = time.monotonic() + wait_seconds
        seen: tuple[int, bytes] | None = None
        seen_at = 0.0
        while True:
            number, content = self.top()
            now = time.monotonic()
            if (number, content) != seen:
                changed, seen, seen_at = seen is not None, (number, content), now
            life = _life(content) if number else False
            # Nothing but its own renewals tells of a process elsewhere, and the first look proves nothing.
            if life is False or (life is None and now - seen_at > self._silence):
                if self._put(number + 1):
                    return True
            elif now >= deadline and (life or changed):
                return False
            time.sleep(LOOK_SECONDS)

    def require(self) -> None:
        """Raise `LockedError` when somebody has taken this process for dead and the lock with it."""
        if not self._is_mine():
            raise LockedError(f"The lock {self.name!r} was lost to another process while it was held; run again.")

    def release(self) -> None:
        """Give the lock back; a lock that is not held stays as it is."""
        self._stop_renewing()
        if self._is_mine():
            self._store.delete([f"{self._prefix}{self._number:08d}"])
        self._number = 0

    def abandon(self) -> None:
        """Leave the lock as a killed process of this machine leaves it: `owner_is_gone` finds it, anybody takes it."""
        self._stop_renewing()
        if self._is_mine():
            self._store.write(f"{self._prefix}{self._number:08d}", json.dumps({"host": host()}).encode())
        self._number = 0

    def _stop_renewing(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _is_mine(self) -> bool:
        """Look whose the lock is; the number alone does not tell, as numbers begin anew after a release."""
        number, content = self.top()
        return 0 < number == self._number and self._wrote(content)

    def _wrote(self, content: bytes) -> bool:
        return _owner(content).get("owner") == self._owner["owner"]

    def _put(self, number: int) -> bool:
        self._renewals = 0
        mine = f"{self._prefix}{number:08d}"
        if not self._store.write(mine, self._content(), if_absent=True):
            # One's own object may be what is there: where the store's answer was lost, the repetition comes second.
            try:
                if not self._wrote(self._store.read(mine)):
                    return False
            except MissingObjectError:  # another owner's, released meanwhile
                return False
        keys = self._keys()
        if max(keys, default="") != mine:
            self._store.delete([mine])
            return False
        self._store.delete([key for key in keys if key < mine])
        self._number = number
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, name=f"lock {self.name}", daemon=True)
        self._thread.start()
        return True

    def top(self) -> tuple[int, bytes]:
        """Return the owner's generation and what it wrote; 0 where nobody owns the lock."""
        keys = self._keys()
        if not keys:
            return 0, b""
        number = int(max(keys).rpartition("/")[2])
        try:
            return number, self._store.read(max(keys))
        except MissingObjectError:  # released between the two looks
            return 0, b""

    def _keys(self) -> list[str]:
        # Whatever else somebody put there is no generation.
        keys = (info.key for info in self._store.list(self._prefix))
        return [key for key in keys if GENERATION.fullmatch(key.removeprefix(self._prefix))]

    def _content(self) -> bytes:
        return json.dumps({**self._owner, "renewals": self._renewals}).encode()

    def _renew(self) -> None:
        while not self._stop.wait(self._silence / RENEWALS_IN_SILENCE):
            self._renewals += 1
            try:
                if not self._is_mine():
                    return
                self._store.write(f"{self._prefix}{self._number:08d}", self._content())
            except StoreError as error:
                # The next renewal may get through; if none does, others will take the lock, and `require` says so.
                logger.warning("The lock %s could not be renewed: %s", self.name, error)


@contextmanager
def held(
    store: Store, name: str, what: str, wait_seconds: float, silence_seconds: float = SILENCE_SECONDS
) -> Iterator[StoreLock]:
    """Hold a lock for a block.

    Raises
    ------
    LockedError
        If its owner still shows life after `wait_seconds`; `what` says what the owner is doing.
    """
    lock = StoreLock(store, name, silence_seconds)
    if not lock.try_acquire(wait_seconds):
        raise LockedError(f"{what}; wait until it is done, then run again.")
    try:
        yield lock
    finally:
        lock.release()


def owner_is_gone(store: Store, name: str) -> bool:
    """Say whether a lock's owner was a process of this machine that lives no more; False where that is not known."""
    number, content = StoreLock(store, name).top()
    return number > 0 and _life(content) is False


def abandoned_locks(store: Store) -> list[str]:
    """Return the names of the locks whose owner was a process of this machine that lives no more."""
    parts = {info.key.removeprefix(f"{FOLDER}/").partition("/")[0] for info in store.list(f"{FOLDER}/")}
    return [name for name in sorted(parts) if owner_is_gone(store, name)]


def _this_process() -> dict[str, object]:
    return {"host": host(), "pid": os.getpid(), "started": start_of_this_process()}


def _life(content: bytes) -> bool | None:
    """Say whether an owner lives; None where it is no process of this machine."""
    owner = _owner(content)
    return _runs(owner) if owner.get("host") == host() else None


def _owner(content: bytes) -> dict[str, object]:
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _runs(owner: dict[str, object]) -> bool:
    try:
        return process_lives(int(str(owner["pid"])), float(str(owner["started"])))
    except (KeyError, ValueError):
        return False
