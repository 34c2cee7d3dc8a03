"""The processes of one training run: what accelerate found around it, and how the weights lie on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fusion_core.config import TrainingConfig
from fusion_core.devices import compute_dtype
from fusion_core.training_model import TargetModel


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


def distributed(model: TargetModel, accelerator: Accelerator, strategy: str) -> nn.Module:
    """Copy the model to every process (ddp), or leave each its share of every weight (fsdp); in place.

    Parameters
    ----------
    model : TargetModel
    accelerator : Accelerator
    strategy : {"ddp", "fsdp"}
    """
    if strategy == "ddp" or accelerator.num_processes == 1:
        return accelerator.prepare(model)
    # Straight to torch: accelerate knows FSDP2 on accelerators alone, and this must also run where tests run.
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in _repeated_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _repeated_layers(model: nn.Module) -> list[nn.Module]:
    # The decoder's blocks: the longest list of modules.
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
