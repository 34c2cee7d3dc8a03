"""What the safetensors headers of a checkpoint say of its tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple


class StoredTensor(NamedTuple):
    """One tensor as a header has it: safetensors' name of its dtype, entries, and bytes in the file."""

    dtype: str
    entries: int
    bytes: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of a checkpoint folder's safetensors, without reading weights.

    Returns
    -------
    dict from the parameter's name to StoredTensor
        Empty without safetensors.

    Raises
    ------
    ValueError or KeyError
        If a header is none.
    """
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                found[name] = StoredTensor(tensor["dtype"], math.prod(tensor["shape"]), stop - start)
    return found
