"""The vLLM backend against extraction by transformers, through a stand-in that answers as vLLM's engine does.

vLLM itself does not run here. The stand-in has its names: `LLM(...)`, `SamplingParams`, `TokensPrompt`, and answers
whose `prompt_logprobs` holds, for each prompt token but the first, a mapping from token to `logprob` and `rank`, the
prompt's own token always among them.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fusion_core.config import ExtractionConfig, FusionConfig
from fusion_core.errors import ConfigError, ModelError
from fusion_core.extraction.extract import extract_shard
from fusion_core.extraction.vllm_backend import SPARE_ENTRIES, VllmReader
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.placement import place
from tests.fusion_core.extraction.test_extract import VOCABULARY, Tokenizer, some_dialogues
from tests.fusion_core.extraction.test_output_heads import small_model

MODEL = ResolvedModel("small", Path("small"), "d" * 64, "t" * 64, dtype="float32")


@dataclass(frozen=True)
class Logprob:
    logprob: float
    rank: int
    decoded_token: str | None = None


class Engine:
    """Answers with a model's own log-probabilities; remembers how it was made and asked."""

    made_with: dict
    spoil = staticmethod(lambda answer: answer)

    def __init__(self, **settings: object) -> None:
        Engine.made_with = settings
        self.model = small_model("Llama")

    @torch.inference_mode()
    def generate(self, prompts: list, parameters: SimpleNamespace, *, use_tqdm: bool) -> list[SimpleNamespace]:
        assert parameters.max_tokens == 1 and parameters.prompt_logprobs <= Engine.made_with["max_logprobs"]
        return [
            SimpleNamespace(prompt_logprobs=Engine.spoil(self.answer(p["prompt_token_ids"], parameters)))
            for p in prompts
        ]

    def answer(self, ids: list[int], parameters: SimpleNamespace) -> list[dict[int, Logprob] | None]:
        assert len(ids) < Engine.made_with["max_model_len"]
        log_probs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        answer: list[dict[int, Logprob] | None] = [None]
        for row, label in zip(log_probs[:-1], ids[1:], strict=True):
            order = row.argsort(descending=True).tolist()
            chosen = dict.fromkeys([label, *order[: parameters.prompt_logprobs]])
            answer.append({token: Logprob(float(row[token]), order.index(token) + 1) for token in chosen})
        return answer


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    stand_in = ModuleType("vllm")
    stand_in.__dict__.update(LLM=Engine, SamplingParams=SimpleNamespace, TokensPrompt=dict)
    stand_in.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr(Engine, "spoil", staticmethod(lambda answer: answer))
    return Engine


def read(**settings: object):
    config = ExtractionConfig(**{"top_k": 7, "backend": "vllm", **settings})
    return VllmReader(MODEL, VOCABULARY, config, 90, 1).read(some_dialogues())


def test_gives_what_extraction_gives(engine: type[Engine]) -> None:
    found, statistics = read()
    config = ExtractionConfig(top_k=7)
    expected, _ = extract_shard(
        small_model("Llama"), Tokenizer(), some_dialogues(), config, model_name="small", device=torch.device("cpu")
    )
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.label_log_probs, expected.label_log_probs, atol=1e-5)
    np.testing.assert_array_equal(found.row_splits, expected.row_splits)
    assert found.token_ids.max() < VOCABULARY and found.token_ids.dtype == np.int32
    assert statistics.positions == found.positions


def test_the_engine_is_made_for_prompts_without_a_prefix_cache(engine: type[Engine]) -> None:
    read(batch_tokens=50)
    made = engine.made_with
    assert made["enable_prefix_caching"] is False and made["logprobs_mode"] == "raw_logprobs"
    assert made["max_logprobs"] == 7 + SPARE_ENTRIES and made["max_num_batched_tokens"] == 91
    assert made["model"] == "small" and made["dtype"] == "float32" and made["tensor_parallel_size"] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: None,
        lambda answer: answer[:-1],
        lambda answer: [*answer[:-1], None],
        lambda answer: [*answer[:-1], {7000: Logprob(-1.0, 1)}],
    ],
    ids=["none", "one fewer", "an empty one", "without the label"],
)
def test_a_position_without_log_probs_is_an_error(engine, monkeypatch: pytest.MonkeyPatch, spoil) -> None:
    monkeypatch.setattr(engine, "spoil", staticmethod(spoil))
    with pytest.raises(ModelError, match=r"'small': vLLM gave log-probabilities at \d+ of \d+ positions of dialogue"):
        read()


def test_nan_names_model_and_dialogue(engine: type[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(answer: list) -> list:
        return [None, *({token: Logprob(float("nan"), 1) for token in entry} for entry in answer[1:])]

    monkeypatch.setattr(engine, "spoil", staticmethod(spoil))
    with pytest.raises(ModelError, match="'small' computes NaN or infinite logits in dialogue dialogue-0;"):
        read()


def test_without_vllm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for attempt in (read, lambda: place(MODEL, ExtractionConfig(backend="vllm"), torch.device("cpu"), 1)):
        with pytest.raises(ConfigError, match=r"needs vLLM.*install -e '\.\[vllm\]'.*`backend: transformers`"):
            attempt()


def test_a_quantised_source_needs_transformers() -> None:
    recipe = {
        "name": "recipe",
        "pivot": {"name": "pivot", "path": "pivot"},
        "sources": [{"name": "large", "path": "large", "quantization": "int4"}],
        "dialogues": {"files": [{"path": "data.jsonl"}]},
        "extraction": {"backend": "vllm"},
    }
    with pytest.raises(ValueError, match="does not read source 'large' quantised"):
        FusionConfig.model_validate(recipe)
    recipe["pivot"]["quantization"] = "int8"
    with pytest.raises(ValueError, match="a pivot is trained"):
        FusionConfig.model_validate(recipe)
