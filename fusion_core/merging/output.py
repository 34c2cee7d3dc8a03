"""An output folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion_core.errors import MergeError
from fusion_core.merging.report import JSON_NAME


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the output's place when the block ends without an error.

    What a killed run left in the sibling is removed first; the kernel's lock on it ends with the process, so a living
    one is told from a dead one.

    Raises
    ------
    MergeError
        If the output is there already and is no earlier merge, or another process writes to it now.
    """
    output = Path(os.path.abspath(output.expanduser()))
    check_replaceable(output)
    partial = output.with_name(f".{output.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MergeError(
                f"Another merge writes to {output} now; wait for it or choose another output folder."
            ) from error
        try:
            _empty(partial)
            yield partial
            if output.exists():
                shutil.rmtree(output)
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def check_replaceable(output: Path) -> None:
    """Raise MergeError if the output exists and is neither an empty folder nor an earlier merge."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / JSON_NAME).is_file()):
        raise MergeError(
            f"{output} exists and is no earlier merge (it has no {JSON_NAME}); choose another output folder."
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
