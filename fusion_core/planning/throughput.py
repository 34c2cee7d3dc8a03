"""What the device at hand computes per second, measured by matrix products."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import psutil
import torch

from fusion_core.record import Record

# On a processor that is shared, a short product has the best chance to run undisturbed.
CPU_SIDE = 512
CUDA_SIDE = 8192
MEASURE_SECONDS = 1.0


class DeviceThroughput(Record):
    """One device.

    Parameters
    ----------
    name : str
        In words.
    kind : str
        'cpu' or 'cuda'.
    flops_per_second : dict
        Measured floating-point operations per second of a large matrix product, by dtype name.
    memory_bytes : int
        Memory of the device.
    busy_with : float
        Runnable processes per processor thread before the measurement; above 1 the machine is shared, and all times
        grow.
    """

    name: str
    kind: str
    flops_per_second: dict[str, float]
    memory_bytes: int
    busy_with: float = 0.0


def measure_throughput(device: torch.device, seconds: float = MEASURE_SECONDS) -> DeviceThroughput:
    """Time large matrix products in float32 and bfloat16, and take the fastest; takes about ``2 * seconds``.

    Parameters
    ----------
    device : torch.device
    seconds : float
        Time spent on each dtype.
    """
    busy = psutil.getloadavg()[0] / torch.get_num_threads()
    rates = {name: _product_rate(device, getattr(torch, name), seconds) for name in ("float32", "bfloat16")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return DeviceThroughput(
            name=properties.name, kind="cuda", flops_per_second=rates, memory_bytes=properties.total_memory
        )
    return DeviceThroughput(
        name=f"{_processor_name()}, {torch.get_num_threads()} threads",
        kind=device.type,
        flops_per_second=rates,
        memory_bytes=psutil.virtual_memory().total,
        busy_with=busy,
    )


def _product_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    side = CUDA_SIDE if device.type == "cuda" else CPU_SIDE
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    with torch.inference_mode():
        left @ right
        _wait(device)
        fastest, started = float("inf"), time.perf_counter()
        while (before := time.perf_counter()) - started < seconds or fastest == float("inf"):
            left @ right
            _wait(device)
            fastest = min(fastest, time.perf_counter() - before)
    return 2.0 * side**3 / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor_name() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
