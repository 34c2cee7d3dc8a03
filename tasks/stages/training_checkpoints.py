"""Resumable checkpoints of a training run in the object store, for a machine that has to go on from another's.

They lie below the address of the target that is being trained: ``<address>/checkpoints/step-00000200/``. An index with
the checksum of every file is written last, so a checkpoint without one is none.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from fusion_core.errors import StoreError, first_line
from fusion_core.training.checkpoints import checkpoints_in
from tasks.store.interface import MissingObjectError, Store, check_key
from tasks.store.local_files import disk_errors, hash_file

logger = logging.getLogger(__name__)

INDEX = "index.json"
STEP = re.compile(r"step-[0-9]{8}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


class StoredCheckpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    store : Store
    address : str
        Of the target.
    keep : int
        Checkpoints that stay; older ones are deleted after a new one is whole.
    """

    def __init__(self, store: Store, address: str, keep: int) -> None:
        self._store = store
        self._prefix = check_key(f"{address}/checkpoints")
        self._keep = keep

    def put(self, checkpoint: Path) -> None:
        """Copy a checkpoint's folder into the store; a store that fails costs a warning, not the run."""
        name = checkpoint.name
        try:
            # What an earlier attempt wrote under this name is no longer whole from here on.
            self._store.delete([self._key(name, INDEX)])
            index = {}
            for path in sorted(checkpoint.iterdir()):
                index[path.name] = hash_file(path)
                self._store.upload(self._key(name, path.name), path, sha256=index[path.name])
            self._store.write(self._key(name, INDEX), json.dumps(index, indent=1).encode())
            for old in self._whole()[: -self._keep]:
                self._delete(old)
        except StoreError as error:
            logger.warning("Checkpoint %s stays on this machine alone: %s", name, error)

    def fetch_newest(self, folder: Path) -> None:
        """Copy the newest whole checkpoint into the local folder of this run, unless that has one as new."""
        there = checkpoints_in(folder)
        for name in reversed(self._whole()):
            if there and name <= there[-1].name:
                return
            if self._fetch(name, folder):
                return

    def remove(self) -> None:
        """Delete everything."""
        self._store.delete([info.key for info in self._store.list(self._prefix + "/")])

    def _fetch(self, name: str, folder: Path) -> bool:
        building = folder / f".fetching-{name}"
        shutil.rmtree(building, ignore_errors=True)
        with disk_errors(f"Making {building}"):
            building.mkdir(parents=True)
        try:
            index = self._read_index(name)
            broken = [
                file
                for file, sha256 in index.items()
                if self._store.download(self._key(name, file), building / file) != sha256
            ]
        except (MissingObjectError, ValueError, RecursionError) as error:
            broken = [first_line(error)]
        if broken:
            logger.warning("Checkpoint %s in the store is broken (%s); an older one is looked for.", name, broken[0])
            shutil.rmtree(building)
            return False
        building.rename(folder / name)
        return True

    def _read_index(self, name: str) -> dict[str, str]:
        index = json.loads(self._store.read(self._key(name, INDEX)))
        if not isinstance(index, dict) or not all(FILE_NAME.fullmatch(file) for file in index):
            # Files are written by these names, into this checkpoint's folder and no other.
            raise ValueError("its index names no files of a checkpoint")
        return index

    def _whole(self) -> list[str]:
        keys = (info.key for info in self._store.list(self._prefix + "/"))
        names = (key.removeprefix(f"{self._prefix}/").removesuffix(f"/{INDEX}") for key in keys if key.endswith(INDEX))
        return sorted(name for name in names if STEP.fullmatch(name))

    def _delete(self, name: str) -> None:
        # The index first: at no moment may it list what is gone.
        self._store.delete([self._key(name, INDEX)])
        self._store.delete([info.key for info in self._store.list(f"{self._prefix}/{name}/")])

    def _key(self, name: str, file: str) -> str:
        return f"{self._prefix}/{name}/{file}"
