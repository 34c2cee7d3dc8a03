"""Little checkpoints for the merge tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def save(folder: Path, tensors: Tensors) -> Path:
    """Write a checkpoint folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def load(folder: Path) -> Tensors:
    """Read all tensors of a checkpoint folder."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def random_pivot(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Return a pivot of a few tensors of different shapes, a scalar and a tensor of more than one block of torch."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (300, 257),
        "model.layers.0.self_attn.q_proj.weight": (40, 24),
        "model.layers.0.self_attn.q_proj.bias": (40,),
        "model.layers.0.mlp.up_proj.weight": (7, 9),
        "model.layers.0.input_layernorm.weight": (24,),
        "model.layers.1.self_attn.q_proj.weight": (40, 24),
        "model.layers.1.self_attn.q_proj.bias": (40,),
        "model.layers.1.mlp.up_proj.weight": (7, 9),
        "model.layers.1.input_layernorm.weight": (24,),
        "model.norm.weight": (24,),
        "scale": (),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def trained_from(pivot: Tensors, seed: int, scale: float = 0.1) -> Tensors:
    """Return a target: the pivot with random deltas, larger in some tensors than in others."""
    generator = torch.Generator().manual_seed(seed)
    target = {}
    for name, tensor in pivot.items():
        size = scale * (0.5 + torch.rand((), generator=generator))
        target[name] = tensor + (size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    return target


def save_all(folder: Path, pivot: Tensors, targets: Sequence[Tensors]) -> tuple[Path, list[Path]]:
    """Write a pivot and its targets."""
    return save(folder / "pivot", pivot), [
        save(folder / f"target-{number}", target) for number, target in enumerate(targets)
    ]
