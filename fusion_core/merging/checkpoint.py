"""Safetensors checkpoints: where each tensor's bytes lie, without reading them."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fusion_core.errors import MergeError
from fusion_core.merging.weight_file import WeightFile

# A header larger than this is no header; the safetensors library has the same bound.
MAX_HEADER_BYTES = 100_000_000
# In bytes, on every file system in use.
LONGEST_FILE_NAME = 255

# How each mergeable type is held in memory; numpy has no bfloat16, so its bits stay 16-bit integers.
FLOAT_STORAGE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Bits of an entry of every type of the format.
ENTRY_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
SAFETENSORS_NAMES = {name: code for code, name in TORCH_NAMES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Parameters
    ----------
    name : str
    dtype : str
        Safetensors type code, such as ``BF16``.
    shape : tuple of int
    path : Path
        File that holds it.
    offset : int
        First byte within the file.
    size_bytes : int
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size_bytes: int

    @property
    def is_float(self) -> bool:
        """Whether the tensor is merged; other types are copied."""
        return self.dtype in FLOAT_STORAGE

    @cached_property
    def count(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)


@dataclass
class Checkpoint:
    """One checkpoint folder, its headers read, its files opened as they are needed.

    Parameters
    ----------
    folder : Path
    tensors : dict
        TensorEntry by name, in the order of the files' bytes.
    """

    folder: Path
    tensors: dict[str, TensorEntry]
    _files: dict[Path, WeightFile] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of a folder's safetensors.

        Raises
        ------
        MergeError
            If the folder has no tensors, a file or tensor of the index is missing, or a file is not whole safetensors.
        """
        tensors: dict[str, TensorEntry] = {}
        files, names = _weight_files(folder)
        for path in files:
            for entry in _read_header(path):
                if entry.name in tensors:
                    raise MergeError(
                        f"{folder}: tensor {entry.name!r} is both in {tensors[entry.name].path.name} and in "
                        f"{path.name}; remove the files that are left over from another save."
                    )
                tensors[entry.name] = entry
        if not tensors:
            raise MergeError(f"{folder} has no tensors in its *.safetensors; fetch or save it again.")
        missing = [repr(name) for name in names if name not in tensors]
        if missing:
            raise MergeError(
                f"{folder}: its index names the tensor {', '.join(missing[:8])}, which is in none of its files; fetch "
                "or save it again."
            )
        return cls(folder, tensors)

    def fetch(self, name: str) -> None:
        """Begin to read a tensor into the page cache, without waiting for it."""
        self._file(name).fetch(self.tensors[name].offset, self.tensors[name].size_bytes)

    def read_into(self, name: str, buffer: memoryview, start: int) -> None:
        """Fill a buffer with a tensor's bytes from its byte ``start`` on."""
        self._file(name).read_into(buffer, self.tensors[name].offset + start)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, name: str) -> WeightFile:
        path = self.tensors[name].path
        if path not in self._files:
            self._files[path] = WeightFile(path)
        return self._files[path]


def _weight_files(folder: Path) -> tuple[Sequence[Path], list[str]]:
    """Return a folder's files of weights, and the tensors that its index, where it has one, promises."""
    if not folder.is_dir():
        raise MergeError(f"The checkpoint folder {folder} does not exist; correct its path.")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], []
    if index.is_file():
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            names = sorted({str(name) for name in weight_map.values()})
            if not names or any(Path(name).name != name or not name.isprintable() for name in names):
                raise ValueError("a name in it is none of a file of this folder")
            if any(len(os.fsencode(name)) > LONGEST_FILE_NAME for name in names):
                raise ValueError("a name in it is longer than a file's may be")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise MergeError(f"{index} is no safetensors index; save the checkpoint again.") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise MergeError(f"{folder}: its index names {', '.join(missing)}, which is not there; fetch it again.")
        return [folder / name for name in names], list(weight_map)
    # Of a pipe of that name, reading would never end.
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not files:
        raise MergeError(f"{folder} has no *.safetensors; convert the weights, other formats are not read.")
    return files, []


def _read_header(path: Path) -> list[TensorEntry]:
    broken = f"{path} is not a whole safetensors file"
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise MergeError(f"{broken}: its header is cut off; fetch or save it again.")
        try:
            header = json.loads(file.read(length))
            entries = [
                _entry(name, record, path, 8 + length) for name, record in header.items() if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise MergeError(f"{broken}: its header cannot be read; fetch or save it again.") from error
    for entry in entries:
        if entry.offset < 8 + length or entry.size_bytes < 0 or entry.offset + entry.size_bytes > file_bytes:
            raise MergeError(f"{broken}: tensor {entry.name!r} lies beyond its end; fetch or save it again.")
        if entry.size_bytes * 8 != entry.count * ENTRY_BITS[entry.dtype]:
            raise MergeError(f"{broken}: tensor {entry.name!r} has not the bytes of its shape; save it again.")
    entries.sort(key=lambda entry: (entry.offset, entry.size_bytes))
    # As the safetensors library has it: no byte belongs to two tensors, and none to no tensor.
    for before, after in itertools.pairwise(entries):
        if after.offset < before.offset + before.size_bytes:
            raise MergeError(f"{broken}: tensors {before.name!r} and {after.name!r} share bytes; save it again.")
    if 8 + length + sum(entry.size_bytes for entry in entries) != file_bytes:
        raise MergeError(f"{broken}: it holds bytes that belong to none of its tensors; fetch or save it again.")
    return entries


def _entry(name: str, record: Any, path: Path, data_start: int) -> TensorEntry:
    """Read one tensor's place; `ValueError` where it is none."""
    dtype, shape, (begin, end) = record["dtype"], tuple(record["shape"]), record["data_offsets"]
    sizes = (*shape, begin, end)
    if (
        dtype not in ENTRY_BITS
        or not name.isprintable()
        or any(type(size) is not int or not 0 <= size < 2**63 for size in sizes)
    ):
        raise ValueError(f"{name!r} is no name, or has no type, shape and place")
    return TensorEntry(name, dtype, shape, path, data_start + begin, end - begin)
