"""Output heads of real architectures, found and used, against each model's own logits."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from fusion_core.extraction.output_heads import find_output_head
from fusion_core.extraction.top_k_logits import LogitTransform

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FAMILIES = {
    "Llama": (GROUPED, LogitTransform()),
    "Mistral": (GROUPED, LogitTransform()),
    "Mixtral": ({**GROUPED, "num_local_experts": 4}, LogitTransform()),
    "Qwen2": ({**GROUPED, "tie_word_embeddings": True}, LogitTransform()),
    "Gemma2": ({**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0}, LogitTransform(soft_cap=2.0)),
    "GPTNeoX": (SHAPE, LogitTransform()),
    "Phi": (SHAPE, LogitTransform()),
    "Cohere": ({**GROUPED, "logit_scale": 0.25}, LogitTransform(scale=0.25)),
    "Granite": ({**GROUPED, "logits_scaling": 8.0}, LogitTransform(scale=0.125)),
}


def small_model(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model of a real class whose logits are large enough for a cap or a scale to show."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_what_the_model_does_to_its_logits(family):
    model = small_model(family)
    head = find_output_head(model, torch.arange(3, 60))
    assert head is not None and head.transform == FAMILIES[family][1]
    assert (head.embedding.bias is not None) == (family == "Phi")


def test_one_field_name_means_factor_and_divisor():
    model = small_model("Granite")
    own = model.forward

    def multiplying(*arguments, **settings):
        output = own(*arguments, **settings)
        output.logits = output.logits * 64.0
        return output

    model.forward = multiplying
    assert find_output_head(model, torch.arange(3, 60)).transform == LogitTransform(scale=8.0)


def test_half_precision_heads_are_found():
    head = find_output_head(small_model("Gemma2", torch.bfloat16), torch.arange(3, 60))
    assert head is not None and head.transform == LogitTransform(soft_cap=2.0)


def test_a_head_that_does_more_is_not_taken():
    model = small_model("Llama")
    own = model.forward

    def shifted(*arguments, **settings):
        output = own(*arguments, **settings)
        output.logits = output.logits + torch.arange(211) * 0.01
        return output

    model.forward = shifted
    assert find_output_head(model, torch.arange(3, 60)) is None


def test_a_model_without_output_embedding_has_none():
    model = small_model("Llama")
    model.get_output_embeddings = lambda: None
    assert find_output_head(model, torch.arange(3, 60)) is None
