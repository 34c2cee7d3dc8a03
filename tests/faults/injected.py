"""What a test does to the product from outside, in the process that is to fail or to be watched.

Each function replaces one function of the product by one that kills the whole process group, or that writes down what
it was called for. None of this is known to the product.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die() -> None:
    """End the whole process group as a power cut would."""
    os.killpg(0, signal.SIGKILL)


def argument() -> str:
    """Return what the test said besides the function's name."""
    return os.environ["TEST_ARGUMENT"]


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put what `make` returns for a function in its place."""
    setattr(owner, name, make(getattr(owner, name)))


def between_upload_and_manifest() -> None:
    """Die when everything of a publication is in the store but its manifest; the argument begins its address."""
    from tasks.store.publication import Publication

    def make(finish: Any) -> Any:
        def patched(self: Publication, **given: Any) -> Any:
            if self.address.startswith(argument()):
                die()
            return finish(self, **given)

        return patched

    replace(Publication, "finish", make)


def after_the_manifest() -> None:
    """Die when a manifest has just been written, and nobody has been told; the argument begins its address."""
    from tasks.store.publication import Publication

    def make(finish: Any) -> Any:
        def patched(self: Publication, **given: Any) -> Any:
            made = finish(self, **given)
            if self.address.startswith(argument()):
                die()
            return made

        return patched

    replace(Publication, "finish", make)


def in_an_object() -> None:
    """Die when an object is written to the store's temporary file, and is not at its key; the argument ends its key."""
    from tasks.store.folder import FolderStore

    def make(place: Any) -> Any:
        def patched(self: FolderStore, partial: Path, key: str, *rest: Any) -> Any:
            if key.endswith(argument()):
                die()
            return place(self, partial, key, *rest)

        return patched

    replace(FolderStore, "_place", make)


def in_a_checkpoint() -> None:
    """Die when a training checkpoint has its weights and not yet its optimizer; the argument counts checkpoints."""
    from fusion_core.training import checkpoints as training_checkpoints

    written: list[Path] = []

    def make(save_file: Any) -> Any:
        def patched(tensors: Any, path: Path) -> None:
            save_file(tensors, path)
            if Path(path).name == "model.safetensors":
                written.append(path)
                if len(written) == int(argument()):
                    die()

        return patched

    replace(training_checkpoints, "save_file", make)


def in_a_merge() -> None:
    """Die after so many writes of the merge as the argument says."""
    from fusion_core.merging.writer import CheckpointWriter

    writes: list[str] = []

    def make(write: Any) -> Any:
        def patched(self: CheckpointWriter, name: str, start_bytes: int, data: memoryview) -> None:
            write(self, name, start_bytes, data)
            writes.append(name)
            if len(writes) == int(argument()):
                die()

        return patched

    replace(CheckpointWriter, "write", make)


def in_a_registration() -> None:
    """Die as soon as one of MLflow's calls has returned; the argument is its name."""
    from mlflow.tracking import MlflowClient

    def make(call: Any) -> Any:
        def patched(self: MlflowClient, *given: Any, **named: Any) -> Any:
            call(self, *given, **named)
            die()

        return patched

    replace(MlflowClient, argument(), make)


def before_the_lock_is_given_back() -> None:
    """Die when the fusion's run is finished in MLflow and its lock is still held."""
    from tasks.store.lock import StoreLock

    def make(release: Any) -> Any:
        def patched(self: StoreLock) -> None:
            if self.name.startswith("run-"):
                die()
            release(self)

        return patched

    replace(StoreLock, "release", make)


def record_work() -> None:
    """Write down, line by line into the file that is the argument, every shard that is extracted or fused."""
    from tasks.stages import extract, fuse

    def note(stage: str, digest: str, name: str) -> None:
        with Path(argument()).open("a") as file:
            file.write(json.dumps([stage, digest, name]) + "\n")

    def make_extract(extract_files: Any) -> Any:
        def patched(job: Any, missing: dict[Path, Path], *rest: Any) -> Any:
            for path in missing:
                note("distributions", job.model.digest, path.name)
            return extract_files(job, missing, *rest)

        return patched

    def make_fuse(write_shard: Any) -> Any:
        def patched(path: Path, shard: Any) -> None:
            note("fused", shard.metadata.model_digest, path.name)
            write_shard(path, shard)

        return patched

    replace(extract, "extract_files", make_extract)
    replace(fuse, "write_shard", make_fuse)


def fill_the_disk() -> None:
    """Leave no room on the disk of the work folders as soon as a stage begins; the argument begins its address.

    The file that takes the room lies beside the home folder's store and is called ballast.
    """
    from tasks.store import workplace

    def make(publication: Any) -> Any:
        def patched(store: Any, address: str) -> Any:
            if address.startswith(argument()):
                take_all_room(Path(os.environ["FUSELINE_HOME"]) / "ballast")
            return publication(store, address)

        return patched

    replace(workplace, "Publication", make)


def fill_the_disk_for_the_report() -> None:
    """Leave no room when all stages are whole and the run's report is about to be written."""
    from tasks.stages import summarize

    def make(render: Any) -> Any:
        def patched(summary: Any) -> str:
            take_all_room(Path(os.environ["FUSELINE_HOME"]) / "ballast")
            return str(render(summary))

        return patched

    replace(summarize, "render_report", make)


def take_all_room(path: Path) -> None:
    """Grow a file until the disk has no block left."""
    with path.open("wb") as file:
        end = 0
        for step in (1 << 20, 4096):
            try:
                while True:
                    os.posix_fallocate(file.fileno(), end, step)
                    end += step
            except OSError:
                continue
