"""NaN and infinity: found in what is read and in what would be written, and refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fusion_core.errors import MergeError
from fusion_core.merging import kernels
from fusion_core.merging.checkpoint import TORCH_NAMES, Checkpoint, TensorEntry
from fusion_core.merging.values import blocks_of

# The exponent of infinity, which NaN has too.
INFINITY_BITS: dict[torch.dtype, np.unsignedinteger] = {
    torch.bfloat16: np.uint16(0x7F80),
    torch.float16: np.uint16(0x7C00),
    torch.float32: np.uint32(0x7F80 << 16),
    torch.float64: np.uint64(0x7FF << 52),
}


def is_finite(values_N: torch.Tensor) -> bool:
    """Tell whether floating-point values on the processor hold neither NaN nor infinity."""
    infinity = INFINITY_BITS[values_N.dtype]
    return not kernels.holds(values_N.view(torch.uint8).numpy().view(infinity.dtype), infinity)


def input_error(entry: TensorEntry, checkpoints: list[Checkpoint]) -> MergeError:
    """Return what to say of a tensor whose deltas sum to NaN or infinity: which file has it, if one has."""
    dtype = getattr(torch, TORCH_NAMES[entry.dtype])
    for checkpoint in checkpoints:
        for first, last in blocks_of(entry.count):
            block_N = torch.empty(last - first, dtype=dtype)
            checkpoint.read_into(entry.name, block_N.view(torch.uint8).numpy().data, first * dtype.itemsize)
            if not is_finite(block_N):
                return MergeError(
                    f"{entry.name} in {checkpoint.tensors[entry.name].path} holds NaN or infinity; the model that was "
                    "saved there is broken, train or fetch it again."
                )
    return MergeError(
        f"{entry.name}: the targets are so far from the pivot that sums of the difference overflow; they cannot have "
        "been trained from it."
    )


def output_error(name: str, dtype: str, path: Path) -> MergeError:
    """Return what to say of finite inputs whose merge is not: ``dtype`` is the code of the type it was rounded to."""
    return MergeError(
        f"{name}: merged values do not fit into {TORCH_NAMES[dtype]}, although all inputs are finite; they would be "
        f"infinite in {path}. Set `dtype` to a type with a larger range, such as bfloat16 or float32, or smaller "
        "`weights` or `scaling_coefficient`."
    )
