"""Which device computes, and in which precision."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from pathlib import Path

import torch


def default_device() -> torch.device:
    """Return the first CUDA device, else the processor."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bf16 products are faster than float32 ones on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text() if cpu_info.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a recipe's ``auto``, ``float32``, ``bfloat16`` or ``float16`` into a torch dtype for this device."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@functools.cache
def set_imports_aside() -> None:
    """Take what is in memory now, a million objects of imported libraries above all, out of all later collections.

    Once in a process, before its first stage: looking at them all again costs every stage up to a second.
    """
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Give back what a stage no longer uses, so that the next one's models do not come on top of it."""
    # Models and optimizers hang in reference cycles.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps freed tensors of up to 32 MiB in its heap: after a training, gigabytes.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
