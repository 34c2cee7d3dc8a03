"""Work folders in the home folder: one for each address, or part of one, locked by the process that works in it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tasks.store.local_files import disk_errors

LOCK = ".lock"
PART = ".part-"


def work_name(address: str, part: int | None = None) -> str:
    """Return the name of the work folder of an address, or of one part of it."""
    return address.replace("/", "--") + ("" if part is None else f"{PART}{part}")


@contextmanager
def locked_folder(root: Path, name: str) -> Iterator[Path]:
    """Yield a work folder, this process's alone; it is removed when the block ends without an error."""
    folder, lock = root / name, root / f"{name}{LOCK}"
    with ExitStack() as stack:
        with disk_errors(f"Making the work folder {folder}"):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(lock))
            folder.mkdir(exist_ok=True)
        yield folder
        _remove(folder, lock)


def remove_leftovers(root: Path, address: str) -> None:
    """Remove the work folders of a stage that is whole, where their processes were killed before they could."""
    own = work_name(address)
    for name in work_names(root):
        if name == own or name.startswith(f"{own}{PART}"):
            remove_unless_locked(root, name)


def work_names(root: Path) -> list[str]:
    """Return the names of all work folders, and of those of which only the lock is left."""
    with disk_errors(f"Listing the work folders in {root}"):
        return sorted({path.name.removesuffix(LOCK) for path in root.iterdir()}) if root.is_dir() else []


def remove_unless_locked(root: Path, name: str) -> bool:
    """Remove a work folder and its lock unless a process works in it; say whether it is gone."""
    folder, lock = root / name, root / f"{name}{LOCK}"
    with disk_errors(f"Removing the work folder {folder}"), suppress(BlockingIOError), lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have ended since it was opened, and another one begun with a lock of its own.
        if _is_at(lock, file.fileno()):
            _remove(folder, lock)
            return True
    return False


def _remove(folder: Path, lock: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # While it is still locked: whoever waits for it notices that it is gone.
    lock.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it before us may have removed the file that we were waiting for.
            if _is_at(path, file.fileno()):
                yield
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
