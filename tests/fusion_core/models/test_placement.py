"""Where a model lies: what is chosen, and that a model spread over main memory and disk reads the same."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fusion_core.config import ExtractionConfig, ModelConfig
from fusion_core.errors import ConfigError
from fusion_core.extraction.extract import extract_shard
from fusion_core.models import placement
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_model
from fusion_core.models.placement import Placement, load_for_reading, place
from tests.fusion_core.extraction.test_extract import Tokenizer, some_dialogues
from tests.fusion_core.extraction.test_output_heads import small_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_DISK = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "disk"}


def resolved(folder: Path, **settings: object) -> ResolvedModel:
    return ResolvedModel("small", folder, "d" * 64, "t" * 64, dtype="float32", **settings)


def saved(family: str, folder: Path) -> ResolvedModel:
    small_model(family).save_pretrained(folder)
    return resolved(folder)


@dataclass(frozen=True)
class Properties:
    total_memory: int


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Return a function that pretends some GPUs of some memory."""

    def pretend(count: int, memory: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties(memory))

    return pretend


@pytest.mark.parametrize(
    ("settings", "count", "memory", "shards", "expected"),
    [
        ({}, 1, 10_000, 9, Placement("one_device")),
        ({}, 4, 10_000, 9, Placement("one_device", 4)),
        ({}, 4, 10_000, 3, Placement("one_device", 3)),
        ({}, 4, 10_000, 0, Placement("one_device")),
        ({}, 4, 4_900, 9, Placement("spread")),
        ({}, 1, 4_900, 9, Placement("spread")),
        ({"placement": "one_device"}, 4, 4_900, 9, Placement("one_device")),
        ({"placement": "spread"}, 4, 10_000, 9, Placement("spread")),
        ({"placement": "replicas"}, 4, 4_900, 9, Placement("one_device", 4)),
        ({"placement": "replicas", "processes": 2}, 4, 10_000, 9, Placement("one_device", 2)),
    ],
)
def test_a_model_of_4_kb_on_gpus(gpus, monkeypatch, tmp_path, settings, count, memory, shards, expected) -> None:
    gpus(count, memory)
    monkeypatch.setattr(placement, "count_parameters", lambda folder: 1000)
    assert place(resolved(tmp_path), ExtractionConfig(**settings), GPU, shards) == expected


def test_a_quantised_model_takes_less(gpus, monkeypatch, tmp_path: Path) -> None:
    gpus(1, 1_300)
    monkeypatch.setattr(placement, "count_parameters", lambda folder: 1000)
    monkeypatch.setattr(placement, "check_quantization", lambda *_: None)
    assert place(resolved(tmp_path, quantization="int8"), ExtractionConfig(), GPU, 1).kind == "one_device"
    assert place(resolved(tmp_path), ExtractionConfig(), GPU, 1).kind == "spread"


def test_on_a_processor(tmp_path: Path) -> None:
    model = resolved(tmp_path)
    assert place(model, ExtractionConfig(), CPU, 9) == Placement("one_device")
    three = ExtractionConfig(placement="replicas", processes=3)
    assert place(model, three, CPU, 9) == Placement("one_device", 3)
    assert place(model, ExtractionConfig(placement="replicas"), CPU, 9) == Placement("one_device")
    assert place(model, ExtractionConfig(placement="spread"), CPU, 9) == Placement("spread")


def test_more_replicas_than_gpus(gpus, tmp_path: Path) -> None:
    gpus(2, 10_000)
    with pytest.raises(ConfigError, match=r"`extraction\.processes: 3` needs as many GPUs where 2 are visible"):
        place(resolved(tmp_path), ExtractionConfig(placement="replicas", processes=3), GPU, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 2}, "`processes` matters only with `placement: replicas`"),
        ({"placement": "spread", "processes": 2}, "`processes` matters only with `placement: replicas`"),
        ({"backend": "vllm", "truncation": "sampled"}, "set `truncation: top_k`"),
    ],
)
def test_settings_that_would_do_nothing(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExtractionConfig(**settings)


@pytest.mark.parametrize("truncation", ["top_k", "sampled"])
@pytest.mark.parametrize(("family", "head"), [("Phi", "disk"), ("Llama", "cpu"), ("Qwen2", "disk")])
def test_spread_over_memory_and_disk_reads_the_same(tmp_path: Path, family: str, head: str, truncation: str):
    """Phi has a bias, Qwen2 a tied output embedding."""
    model = saved(family, tmp_path)
    device_map = dict(ON_DISK)
    if family == "Phi":
        device_map = {name.replace("model.norm", "model.final_layernorm"): place for name, place in ON_DISK.items()}
        device_map["model.rotary_emb"] = "cpu"
    device_map["lm_head"] = head
    if family == "Qwen2":
        device_map["model.embed_tokens"] = "disk"
    device_map.setdefault("model.rotary_emb", "cpu")
    spread = load_model(model, CPU, device_map=device_map)
    assert spread.get_parameter("model.layers.1.self_attn.q_proj.weight").is_meta
    assert spread.get_output_embeddings().weight.is_meta == (head != "cpu")
    dialogues = some_dialogues(6)
    config = ExtractionConfig(top_k=7, truncation=truncation, batch_tokens=300)
    found, statistics = extract_shard(spread, Tokenizer(), dialogues, config, model_name="small", device=CPU)
    assert not statistics.own_logits
    whole = load_model(model, CPU)
    expected, _ = extract_shard(whole, Tokenizer(), dialogues, config, model_name="small", device=CPU)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)
    np.testing.assert_array_equal(found.label_log_probs, expected.label_log_probs)


def test_spread_without_gpus_is_main_memory(tmp_path: Path) -> None:
    spread = load_for_reading(saved("Llama", tmp_path), CPU, Placement("spread"))
    assert {parameter.device.type for parameter in spread.parameters()} == {"cpu"}


def test_quantisation_without_its_package_or_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = replace(resolved(tmp_path), quantization="int4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'small' asks for `quantization: int4`.*-e '\.\[bitsandbytes\]'"):
        place(model, ExtractionConfig(), CPU, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"`quantization: int4`, which needs a CUDA GPU and none is visible"):
        place(model, ExtractionConfig(), CPU, 1)


@pytest.mark.parametrize(("kind", "expected"), [("int8", "load_in_8bit"), ("int4", "load_in_4bit")])
def test_a_quantised_model_is_loaded_as_such(monkeypatch, tmp_path: Path, kind: str, expected: str) -> None:
    asked: dict[str, object] = {}

    def watch(folder: Path, **settings: object) -> object:
        asked.update(settings)
        raise RuntimeError("seen enough")

    monkeypatch.setattr("fusion_core.models.loading.AutoModelForCausalLM.from_pretrained", watch)
    with pytest.raises(Exception, match="seen enough"):
        load_model(replace(resolved(tmp_path), quantization=kind), GPU)
    assert getattr(asked["quantization_config"], expected) and asked["device_map"] == {"": GPU}


def test_a_quantization_that_is_none() -> None:
    with pytest.raises(ValidationError):
        ModelConfig(name="small", path=Path("small"), quantization="int2")
