"""What stopped runs left in the home folder of this machine, and no run that may still come goes on with."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.settings import Settings
from tasks.store.collection import DAY_SECONDS
from tasks.store.local_files import disk_errors
from tasks.store.owners import TEMPORARY_NAME, is_abandoned
from tasks.store.work_folders import LOCK, PART, remove_unless_locked, work_name, work_names


@dataclass(frozen=True)
class LocalLeftover:
    """A folder that nobody needs, and its bytes."""

    path: Path
    bytes: int


def find_local_leftovers(
    settings: Settings, roots: Collection[str], *, older_than_seconds: float = DAY_SECONDS
) -> tuple[LocalLeftover, ...]:
    """Find work folders of stages and half fetched sources that were not written to for a time.

    Parameters
    ----------
    settings : Settings
    roots : collection of str
        Addresses of the recipes in use; their work folders stay, because the next run goes on in them.
    older_than_seconds : float
        What is younger may belong to a run under way.

    Raises
    ------
    StoreError
        The home folder cannot be read.
    """
    kept = {work_name(address) for address in roots}
    root, sources = settings.work_folder, settings.sources_folder
    found = [root / name for name in work_names(root) if name.partition(PART)[0] not in kept]
    oldest = time.time() - older_than_seconds
    with disk_errors(f"Looking for leftovers in {settings.home}"):
        if sources.is_dir():
            found += [path for path in sources.iterdir() if TEMPORARY_NAME.fullmatch(path.name)]
        looked_at = [(path, _statuses(path)) for path in sorted(found)]
    return tuple(
        LocalLeftover(path, sum(one.st_size for one in statuses if stat.S_ISREG(one.st_mode)))
        for path, statuses in looked_at
        if is_abandoned(path.name) or all(one.st_mtime <= oldest for one in statuses)
    )


def delete_local_leftovers(settings: Settings, leftovers: Collection[LocalLeftover]) -> None:
    """Delete what was found, but for work folders that a process works in by now."""
    for leftover in leftovers:
        if leftover.path.parent == settings.work_folder:
            remove_unless_locked(settings.work_folder, leftover.path.name)
        else:
            shutil.rmtree(leftover.path, ignore_errors=True)


def _statuses(folder: Path) -> list[os.stat_result]:
    """Look at a folder, its lock, and all that is in it; what a run under way removes meanwhile is left out."""
    found = []
    for path in (folder, folder.with_name(f"{folder.name}{LOCK}"), *folder.rglob("*")):
        with suppress(FileNotFoundError):
            found.append(path.lstat())
    return found
