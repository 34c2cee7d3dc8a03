"""Names of real classes to groups."""

from __future__ import annotations

import pytest

from fusion_core.merging.granularity import group_of, layer_of


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3", "model.layers.3.attention"),
        ("model.layers.3.self_attn.q_norm.weight", "model.layers.3", "model.layers.3.attention"),
        ("model.layers.3.post_attention_layernorm.weight", "model.layers.3", "model.layers.3.norm"),
        ("model.layers.13.mlp.experts.5.down_proj.weight", "model.layers.13", "model.layers.13.mlp"),
        ("model.layers.3.block_sparse_moe.gate.weight", "model.layers.3", "model.layers.3.mlp"),
        ("gpt_neox.layers.0.attention.query_key_value.bias", "gpt_neox.layers.0", "gpt_neox.layers.0.attention"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "gpt_neox.layers.0", "gpt_neox.layers.0.mlp"),
        ("transformer.h.7.ln_1.weight", "transformer.h.7", "transformer.h.7.norm"),
        ("transformer.h.7.attn.c_attn.weight", "transformer.h.7", "transformer.h.7.attention"),
        ("model.layers.2.rotary_emb.inv_freq", "model.layers.2", "model.layers.2.rotary_emb"),
        ("model.embed_tokens.weight", "model.embed_tokens", "model.embed_tokens"),
        ("model.norm.weight", "model.norm", "model.norm"),
        ("lm_head.weight", "lm_head", "lm_head"),
        ("scale", "scale", "scale"),
    ],
)
def test_groups(name: str, layer: str, module: str) -> None:
    assert group_of(name, "layer") == layer
    assert group_of(name, "module") == module
    assert group_of(name, "matrix") == name
    assert group_of(name, "model") == "model"


def test_layer_and_matrix() -> None:
    assert layer_of("model.layers.3.self_attn.q_proj.weight") == ("model.layers.3", "self_attn.q_proj.weight")
    assert layer_of("lm_head.weight") == ("", "lm_head.weight")
