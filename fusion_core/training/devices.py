"""The processes of one training run: what accelerate found around it, and how the weights lie on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fusion_core.config import TrainingConfig
from fusion_core.devices import compute_dtype
from fusion_core.errors import TrainingError
from fusion_core.training.model import TargetModel


@contextmanager
def accelerated(config: TrainingConfig, device: torch.device) -> Iterator[Accelerator]:
    """Yield an Accelerator for this device, or for this process's share of an outside launch.

    Parameters
    ----------
    config : TrainingConfig
        Gives the precision of products.
    device : torch.device
        Of another index in each process where torchrun or accelerate launched several.
    """
    # Accelerate keeps one state per process and refuses another precision in it; a run leaves none behind.
    _forget()
    mixed_precision = "bf16" if compute_dtype(config.precision, device) is torch.bfloat16 else "no"
    try:
        yield Accelerator(cpu=device.type == "cpu", mixed_precision=mixed_precision)
    finally:
        _forget()


def check_number_of_processes(processes: int, device: torch.device) -> None:
    """Refuse more processes on this machine than it has devices for.

    Raises
    ------
    TrainingError
        If `processes` is more than the GPUs, or the cores where training is on the processor.
    """
    on_cpu = device.type == "cpu"
    most = os.cpu_count() or 1 if on_cpu else torch.cuda.device_count()
    if processes > most:
        raise TrainingError(
            f"`processes: {processes}` is more than the {most} {'cores' if on_cpu else 'GPUs'} of this machine; lower "
            "it, or start training with torchrun on several machines."
        )


def is_spread(config: TrainingConfig, accelerator: Accelerator) -> bool:
    """Tell whether every process holds its share of the weights alone."""
    return config.strategy == "fsdp" and accelerator.num_processes > 1


def distributed(model: TargetModel, accelerator: Accelerator, *, spread: bool) -> nn.Module:
    """Copy the model to every process (ddp), or leave each its share of the first process's weights (fsdp); in place.

    Parameters
    ----------
    model : TargetModel
        To be spread it needs weights in the first process alone, on the processor; the others' may be on ``meta``.
    accelerator : Accelerator
    spread : bool
    """
    if not spread:
        return accelerator.prepare(model)
    # Straight to torch: accelerate knows FSDP2 on accelerators alone, and this must also run where tests run.
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    done: set[nn.Module] = set()
    # Block by block, so that beside its share a process never holds more than one block and the embeddings.
    for unit in [*_repeated_layers(model), model]:
        _receive(unit, done, accelerator)
        fully_shard(unit, mesh=mesh)
    return model


def _receive(unit: nn.Module, done: set[nn.Module], accelerator: Accelerator) -> None:
    # Tied weights are one tensor in several modules, and must be one afterwards.
    received: dict[Tensor, Tensor] = {}
    for module in unit.modules():
        if module in done:
            continue
        done.add(module)
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for values in tables:
            for name, value in values.items():
                if value is None or isinstance(value, DTensor):
                    continue
                if value not in received:
                    received[value] = _from_first_process(value, accelerator)
                values[name] = received[value]


def _from_first_process(value: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.is_main_process:
        tensor = value.detach().to(accelerator.device)
    else:
        tensor = torch.empty(value.shape, dtype=value.dtype, device=accelerator.device)
    torch.distributed.broadcast(tensor, src=0)
    return nn.Parameter(tensor, value.requires_grad) if isinstance(value, nn.Parameter) else tensor


def _repeated_layers(model: nn.Module) -> list[nn.Module]:
    # The decoder's blocks: the longest list of modules.
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
