"""Packing: dialogues one after the other in one row, each seeing itself alone.

Legend: T tokens of all packed sequences.

Every sequence's position ids count from 0, which is how transformers' attention tells where one ends and the next
begins. An attention for sequences of different lengths then pads nothing; any other masks what it computed in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Float32 products in another order; a sequence that sees its neighbour differs by far more.
PACKING_TOLERANCE = 1e-3
# Of half precision: its own rounding differs with the kernel.
HALF_PRECISION_STEPS = 8
PROBE_TOKENS = 32


def pack(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, np.ndarray]:
    """Put sequences of token ids into one row.

    Returns
    -------
    input_ids : int64 [1, T]
    position_ids : int64 [1, T]
        Each sequence counts from 0.
    starts : int64 [sequences]
        Where each begins.
    """
    lengths = [len(sequence) for sequence in sequences]
    input_ids = np.concatenate(sequences).astype(np.int64)[None]
    position_ids = np.concatenate([np.arange(length) for length in lengths])[None]
    return torch.from_numpy(input_ids), torch.from_numpy(position_ids), np.cumsum([0, *lengths[:-1]])


def skips_padding(model: Any) -> bool:
    """Tell whether a model's attention takes sequences of different lengths without computing what lies between."""
    return "flash" in str(getattr(model.config, "_attn_implementation", ""))


@torch.inference_mode()
def packing_error(model: Any, packed: Tensor, position_ids: Tensor, alone: Tensor) -> float:
    """Return by how much a sequence's logits change, relative to their size, when others are packed before it.

    Parameters
    ----------
    model : PreTrainedModel
    packed, position_ids : int64 [1, T]
        Some sequences.
    alone : int64 [1, t]
        The last of them.
    """
    expected = model(input_ids=alone, use_cache=False).logits[0].float()
    together = model(input_ids=packed, position_ids=position_ids, use_cache=False).logits[0, -len(expected) :].float()
    return float((together - expected).abs().max() / expected.abs().max())


def keeps_packed_apart(model: Any, input_ids: Tensor) -> bool:
    """Try on some text, int64 [T], whether a model's packed sequences do not see each other."""
    probe = input_ids[:PROBE_TOKENS]
    packed, position_ids, _ = pack([probe.flip(0).cpu().numpy(), probe.cpu().numpy()])
    error = packing_error(model, packed.to(probe.device), position_ids.to(probe.device), probe.unsqueeze(0))
    return error <= max(PACKING_TOLERANCE, HALF_PRECISION_STEPS * torch.finfo(model.dtype).eps)
