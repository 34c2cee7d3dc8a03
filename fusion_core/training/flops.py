"""How much of a device's peak a training step uses."""

from __future__ import annotations

from typing import Any

import torch

from fusion_core.errors import ModelError
from fusion_core.planning.counts import EncodedCounts
from fusion_core.planning.model_costs import training_flops
from fusion_core.planning.sizes import ModelSize, size_from_config

# Peak of dense bf16 products per second, from the makers' data sheets; the first name that is part of the device's.
PEAK_BFLOAT16_FLOPS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A30", 165e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("MI300X", 1307e12),
)


class FlopsMeter:
    """Share of the peak (model FLOPs utilisation) of a run's devices; None where a peak or the model's size is unknown.

    Parameters
    ----------
    config : transformers.PretrainedConfig
    device : torch.device
    dtype : torch.dtype
        Precision of the products.
    processes : int
        Devices that share the work.
    """

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype, processes: int) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name) if dtype is torch.bfloat16 else None
        self._peak = None if peak is None else peak * processes
        self._size: ModelSize | None = None
        if self._peak is not None:
            try:
                self._size = size_from_config(name, config)
            except ModelError:
                # Its code is the repository's own; the share is left out rather than the run stopped.
                self._size = None

    def share(self, tokens: int, squared_tokens: int, positions: int, seconds: float) -> float | None:
        """Return the share of the peak that a step's useful FLOPs, padding and recomputation left out, come to."""
        if self._peak is None or self._size is None:
            return None
        counts = EncodedCounts(
            dialogues=0,
            tokens=tokens,
            squared_tokens=squared_tokens,
            positions=positions,
            longest=0,
            counted=0,
            exact=True,
        )
        return training_flops(self._size, counts, checkpointing=False) / (seconds * self._peak)


def peak_flops(device_name: str) -> float | None:
    """Return the peak of dense bf16 products of a device by its name, or None where it is not known."""
    return next((peak for part, peak in PEAK_BFLOAT16_FLOPS if part in device_name), None)
