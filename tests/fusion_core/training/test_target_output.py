"""What a training leaves: the pivot's folder with other weights, adapters merged into them, and its report."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fusion_core.config import LoraConfig
from fusion_core.training.adapters import add_adapters, merge_adapters
from tests.fusion_core.training_fixtures import (
    random_dialogues,
    response_positions,
    settings,
    train,
    weights,
    weights_bytes,
    write_tiny_llama,
)


@pytest.mark.parametrize("tied", [True, False])
def test_output_is_the_pivot_folder_with_other_weights(tied, shards, tmp_path):
    pivot = write_tiny_llama(tmp_path / "pivot", seed=1, tied=tied, dtype=torch.bfloat16)
    train(pivot, shards, tmp_path, settings())
    target = tmp_path / "target"
    assert {path.name for path in target.iterdir()} == {path.name for path in pivot.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (target / name).read_bytes() == (pivot / name).read_bytes()
    before, after = weights(pivot), weights(target)
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(not torch.equal(before[name], after[name]) for name in before if before[name].ndim == 2)
    model, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_every_tensor_keeps_the_precision_it_has_in_the_pivot(shards, tmp_path):
    pivot = write_tiny_llama(tmp_path / "pivot", seed=1, dtype=torch.bfloat16)
    stored = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights(pivot).items()}
    save_file(stored, pivot / "model.safetensors", {"format": "pt"})
    train(pivot, shards, tmp_path, settings(epochs=1))
    assert {name: tensor.dtype for name, tensor in weights(tmp_path / "target").items()} == {
        name: tensor.dtype for name, tensor in stored.items()
    }


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_merged_into_plain_weights(tied, shards, tmp_path):
    pivot = write_tiny_llama(tmp_path / "pivot", seed=1, tied=tied)
    config = settings(lora={"rank": 4, "alpha": 8.0, "dropout": 0.1}, learning_rate=3e-2, checkpoint_steps=3)
    report = train(pivot, shards, tmp_path, config)
    assert report.last_lm_loss < report.first_lm_loss
    before, after = weights(pivot), weights(tmp_path / "target")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-4) <= 4
    assert not any("lora" in name for name in after)


def test_resumed_adapters_end_the_same(pivot, shards, tmp_path):
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 6:
            raise PowerCutError

    config = settings(lora={"rank": 4, "dropout": 0.2})
    train(pivot, shards, tmp_path / "whole", config)
    with pytest.raises(PowerCutError):
        train(pivot, shards, tmp_path / "cut", config, progress=cut)
    stored = load_file(tmp_path / "cut/checkpoints/step-00000004/model.safetensors")
    assert stored and all("lora" in name for name in stored)
    train(pivot, shards, tmp_path / "cut", config)
    assert weights_bytes(tmp_path / "cut") == weights_bytes(tmp_path / "whole")


def test_merged_adapters_compute_what_the_adapters_did(tmp_path):
    folder = write_tiny_llama(tmp_path / "pivot", seed=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = LoraConfig(rank=3, alpha=7.0)
    add_adapters(model, config, seed=0)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    unmerged = plain(torch.arange(10)[None]).logits
    plain.load_state_dict(merge_adapters(model.state_dict(), config))
    expected = model(torch.arange(10)[None]).logits
    torch.testing.assert_close(plain(torch.arange(10)[None]).logits, expected, rtol=1e-4, atol=1e-5)
    assert (expected - unmerged).abs().max() > 1e-2


def test_windows_cover_every_step(pivot, shards, tmp_path):
    windows = []
    report = train(pivot, shards, tmp_path, settings(window_steps=3), on_window=windows.append)
    assert [window.step for window in windows] == [3, 6, 7]
    assert tuple(windows) == report.windows
    assert sum(window.positions for window in windows) == report.positions
    assert report.positions == 2 * sum(len(response_positions(ids)) for ids in random_dialogues(20))
    assert report.tokens == 2 * sum(len(ids) for ids in random_dialogues(20))
    assert all(0 <= window.data_wait_share < 1 and window.tokens_per_second > 0 for window in windows)
    json.dumps([report.as_metadata(), windows[0].as_metrics()])


def test_waiting_for_data_shows_in_the_windows(pivot, shards, tmp_path, monkeypatch):
    class Clock:
        """Three seconds until a batch is there, one until its step is done."""

        def __init__(self) -> None:
            self._laps = itertools.cycle([3.0, 1.0])

        def lap(self) -> float:
            return next(self._laps)

    monkeypatch.setattr("fusion_core.training.loop.Stopwatch", Clock)
    report = train(pivot, shards, tmp_path, settings())
    assert {window.data_wait_share for window in report.windows} == {0.75}
    assert report.seconds == 4.0 * report.steps
