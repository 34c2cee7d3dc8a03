"""Low-rank changes of weights: trained beside frozen weights, stored in float16, added to the weights once.

Legend: O rows, I columns of a weight, R rank. A change is up [O, R] @ down [R, I].
An adapter file holds, for each changed parameter, `<parameter>.up` and `<parameter>.down`.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

RANK = 8
EMBEDDING = "model.embed_tokens"


class LowRank(nn.Module):
    """A frozen linear or embedding layer with a trainable low-rank change of its weight beside it."""

    def __init__(self, base: nn.Linear | nn.Embedding, up: nn.Parameter, down: nn.Parameter) -> None:
        super().__init__()
        self.base, self.up, self.down = base, up, down

    def forward(self, values: Tensor) -> Tensor:
        if isinstance(self.base, nn.Embedding):
            return self.base(values) + functional.embedding(values, self.up) @ self.down
        return self.base(values) + functional.linear(functional.linear(values, self.down), self.up)


def attach(model: PreTrainedModel, *, change_embedding: bool, seed: int) -> dict[str, Tensor]:
    """Freeze `model` and put a trainable change beside each projection, and beside the tied embedding if asked.

    A change starts at zero: `up` is zero, `down` random from `seed`.

    Returns
    -------
    dict[str, Tensor]
        The trainable factors, named as in an adapter file.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    factors: dict[str, Tensor] = {}
    named = model.model.named_modules(prefix="model")
    for name, layer in [(name, layer) for name, layer in named if isinstance(layer, nn.Linear)]:
        scale = 1 / math.sqrt(layer.in_features)
        model.set_submodule(name, LowRank(layer, *_factors(layer.weight, scale, generator, name, factors)))
    if change_embedding:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
        shared = _factors(head.weight, 0.5, generator, EMBEDDING, factors)
        model.set_output_embeddings(LowRank(head, *shared))
        model.set_submodule(EMBEDDING, LowRank(embedding, *shared))
    return factors


def save(factors: dict[str, Tensor], path: Path) -> None:
    """Write an adapter in float16, written whole or not at all."""
    temporary = path.with_suffix(".partial")
    save_file({name: factor.detach().half().contiguous() for name, factor in factors.items()}, temporary)
    temporary.replace(path)


def apply(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights with the adapter's changes added, in float32.

    Raises
    ------
    ValueError
        If the adapter changes a parameter that is absent or has another shape.
    """
    factors = {name: factor.float() for name, factor in load_file(path).items()}
    changed = dict(weights)
    for name in sorted({key.rpartition(".")[0] for key in factors}):
        change = factors[f"{name}.up"] @ factors[f"{name}.down"]
        if name not in weights or weights[name].shape != change.shape:
            found = "absent" if name not in weights else f"of shape {tuple(weights[name].shape)}"
            raise ValueError(
                f"{path.name} changes {name} of shape {tuple(change.shape)}, which is {found} in the model; "
                "the adapter was made for another tokenizer or body, make it again with make_adapters"
            )
        changed[name] = weights[name] + change
    return changed


def _factors(
    weight: Tensor, scale: float, generator: torch.Generator, name: str, factors: dict[str, Tensor]
) -> tuple[nn.Parameter, nn.Parameter]:
    up = nn.Parameter(torch.zeros(weight.shape[0], RANK))
    down = nn.Parameter(torch.randn(RANK, weight.shape[1], generator=generator) * scale)
    factors[f"{name}.weight.up"], factors[f"{name}.weight.down"] = up, down
    return up, down
