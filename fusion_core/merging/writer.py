"""Safetensors written in place, tensor by tensor and block by block, in any order, with the same bytes every time."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion_core.errors import MergeError
from fusion_core.merging.checkpoint import FLOAT_STORAGE, SAFETENSORS_NAMES, TensorEntry


@dataclass(frozen=True)
class Place:
    """Where an output tensor goes: shard number, first byte in the file, type and size."""

    shard: int
    offset: int
    dtype: str
    size_bytes: int


class CheckpointWriter:
    """Lays out all output files from the structure alone, then takes bytes for any place in them.

    Parameters
    ----------
    folder : Path
        Existing folder for the files.
    entries : sequence of TensorEntry
        The pivot's tensors; a shard takes them in this order until the next would not fit.
    dtype : str or None
        Torch name of the floating-point output type; None keeps each tensor's own.
    max_shard_bytes : int
        A single tensor larger than this gets a shard of its own.
    """

    def __init__(self, folder: Path, entries: Sequence[TensorEntry], dtype: str | None, max_shard_bytes: int):
        self.folder = folder
        self.places: dict[str, Place] = {}
        shards: list[list[tuple[TensorEntry, str, int]]] = [[]]
        used = 0
        for entry in entries:
            code = SAFETENSORS_NAMES[dtype] if dtype and entry.is_float else entry.dtype
            size = entry.count * np.dtype(FLOAT_STORAGE[code]).itemsize if entry.is_float else entry.size_bytes
            if shards[-1] and used + size > max_shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append((entry, code, size))
            used += size
        self._descriptors: list[int] = []
        self.files = _shard_names(len(shards))
        try:
            for number, shard in enumerate(shards):
                self._begin(number, shard)
            if len(shards) > 1:
                self._write_index()
        except BaseException:
            # A file that stays open keeps its room on the disk after it was removed.
            self.close()
            raise

    def write(self, name: str, start_bytes: int, data: memoryview) -> None:
        """Write bytes of one tensor, beginning ``start_bytes`` into it; threads may do so at the same time."""
        place = self.places[name]
        _write_at(self._descriptors[place.shard], data, place.offset + start_bytes)

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _begin(self, number: int, shard: list[tuple[TensorEntry, str, int]]) -> None:
        # Wide types first, as the safetensors library does, so that every tensor is aligned to its own width.
        shard = sorted(shard, key=lambda item: -(item[2] // max(item[0].count, 1)))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry, code, size in shard:
            header[entry.name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        for entry, code, size in shard:
            start = header[entry.name]["data_offsets"][0]  # type: ignore[index]
            self.places[entry.name] = Place(number, 8 + len(text) + start, code, size)
        descriptor = os.open(self.folder / self.files[number], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._descriptors.append(descriptor)
        # Before anything is written, so that a disk too full for the header is said in the same words.
        _reserve(descriptor, self.folder / self.files[number], 8 + len(text) + end)
        _write_at(descriptor, memoryview(len(text).to_bytes(8, "little") + text), 0)

    def _write_index(self) -> None:
        index = {
            "metadata": {"total_size": sum(place.size_bytes for place in self.places.values())},
            "weight_map": {name: self.files[self.places[name].shard] for name in sorted(self.places)},
        }
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_at(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data = data[written:]
        position += written


def _reserve(descriptor: int, path: Path, size: int) -> None:
    """Give a file its size and, where the file system can, its room on the disk."""
    # Room that is there makes writing twice as fast, and a full disk stops the merge before it has begun. Not
    # os.posix_fallocate: where the file system cannot, that writes every page.
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if library.fallocate(descriptor, 0, 0, size) == 0:
            return
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MergeError(
                f"There is no room for the merged weights: {path.name} needs {size / 1e9:,.1f} GB in "
                f"{path.parent.parent} ({os.strerror(number)}). Free some, or choose another output folder."
            )
    os.ftruncate(descriptor, size)


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
