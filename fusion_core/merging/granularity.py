"""Which tensors share one merge weight."""

from __future__ import annotations

import re

# The number after the list of layers, whatever the class calls the list: model.layers.3, transformer.h.3, ...
LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks|block|layer)\.\d+(?=\.)")


def group_of(name: str, granularity: str) -> str:
    """Return the name of the group that a tensor belongs to.

    Parameters
    ----------
    name : str
        Tensor name, such as ``model.layers.3.self_attn.q_proj.weight``.
    granularity : str
        ``model``: one group. ``layer``: ``model.layers.3``. ``module``: ``model.layers.3.attention``, with
        ``attention``, ``mlp`` and ``norm`` by what the class calls them and other parts under their own name.
        ``matrix``: the tensor itself. Outside of the layers, ``layer`` and ``module`` group a module's weight and bias.
    """
    if granularity == "model":
        return "model"
    if granularity == "matrix":
        return name
    match = LAYER.match(name)
    if match is None:
        return name.rpartition(".")[0] or name
    if granularity == "layer":
        return match[0]
    return f"{match[0]}.{module_kind(name[match.end() + 1 :])}"


def module_kind(name_in_layer: str) -> str:
    """Return attention, mlp, norm, or the part's own name, for a name such as ``self_attn.q_proj.weight``."""
    part = name_in_layer.partition(".")[0]
    # Norms first: post_attention_layernorm is a norm.
    if "norm" in part or re.match(r"ln(_|\d|$)", part):
        return "norm"
    if "attn" in part or "attention" in part:
        return "attention"
    if re.search(r"mlp|ffn|feed_forward|moe|expert", part):
        return "mlp"
    return part


def layer_of(name: str) -> tuple[str, str]:
    """Split a tensor's name into layer and matrix: ``("model.layers.3", "self_attn.q_proj.weight")``.

    Tensors outside of the layers have the layer ``""``.
    """
    match = LAYER.match(name)
    return (match[0], name[match.end() + 1 :]) if match else ("", name)
