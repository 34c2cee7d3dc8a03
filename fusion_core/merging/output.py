"""An output folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusion_core.errors import MergeError, first_line
from fusion_core.merging.report import JSON_NAME


def real_output(output: Path, inputs: Iterable[Path]) -> Path:
    """Return the place of an output: absolute, ``~`` and links followed.

    Parameters
    ----------
    output : Path
    inputs : iterable of Path
        Folders and files that are read; links in them are followed too.

    Raises
    ------
    MergeError
        If an input lies there or below, where it would be replaced.
    """
    place = Path(os.path.realpath(output.expanduser()))
    for path in inputs:
        if Path(os.path.realpath(path.expanduser())).is_relative_to(place):
            raise MergeError(
                f"The output {output} is or holds one of the inputs, {path}; choose another output folder."
            )
    return place


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the output's place when the block ends without an error.

    What a killed run left in the siblings is removed first, and an earlier merge that it had moved away comes back; the
    kernel's lock on the sibling ends with the process, so a living one is told from a dead one.

    Raises
    ------
    MergeError
        If the output is there already and is no earlier merge, another process writes to it now, or the block met an
        error of the system that names no file, such as a full disk.
    """
    output = real_output(output, ())
    check_replaceable(output)
    partial, replaced = (output.with_name(f".{output.name}.{state}") for state in ("partial", "replaced"))
    created = [folder for folder in output.parents if not folder.exists()]
    try:
        descriptor = _lock(partial, output)
        try:
            _clear_up(output, partial, replaced)
            yield partial
            # Once more: something else may have come there meanwhile.
            check_replaceable(output)
            _take_place(output, partial, replaced)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in created:
                with suppress(OSError):
                    folder.rmdir()
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.filename is not None:
            raise
        raise MergeError(
            f"The merge into {output} stopped: {error.strerror or first_line(error)}; free the disk or memory, or "
            "choose another output folder."
        ) from error


def check_replaceable(output: Path) -> None:
    """Raise MergeError if the output exists and is neither an empty folder nor an earlier merge."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / JSON_NAME).is_file()):
        raise MergeError(
            f"{output} exists and is no earlier merge (it has no {JSON_NAME}); choose another output folder."
        )


def _lock(partial: Path, output: Path) -> int:
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            # Not through a link: what it holds will be removed.
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another merge may have ended since it was opened: then what is locked is its output, or is gone.
            if partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise MergeError(
                f"Another merge writes to {output} now; wait for it or choose another output folder."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _clear_up(output: Path, partial: Path, replaced: Path) -> None:
    """Bring back what a killed run had moved away, and remove what else it left."""
    if replaced.exists() and not output.exists():
        replaced.rename(output)
    _remove(replaced)
    for path in partial.iterdir():
        _remove(path)


def _take_place(output: Path, partial: Path, replaced: Path) -> None:
    # Moved, not removed: half a folder left by a kill would be taken for somebody else's.
    if output.exists():
        output.rename(replaced)
    try:
        partial.rename(output)
    except OSError:
        if replaced.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
