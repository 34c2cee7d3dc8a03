"""Training a target learns what it should, does what plain fine-tuning does, and repeats itself bit for bit."""

from __future__ import annotations

import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from fusion_core.config import TrainingConfig
from fusion_core.errors import ModelError, TrainingError
from fusion_core.shards import read_shard, write_shard
from fusion_core.training.data import FusedShards
from fusion_core.training.loop import learning_rate
from fusion_core.training.plan import BatchPlan
from tests.fusion_core.training_fixtures import (
    VOCABULARY,
    distributions_of,
    random_dialogues,
    response_positions,
    settings,
    train,
    weights,
    weights_bytes,
    write_fused_shards,
    write_tiny_llama,
    written_dialogues,
)


def test_lm_weight_one_is_plain_fine_tuning(pivot, shards, tmp_path):
    config = settings(weight_decay=0.1)
    windows = []
    train(
        pivot, shards, tmp_path, config.model_copy(update={"window_steps": 1}), lm_weight=1.0, on_window=windows.append
    )

    data = FusedShards(shards)
    plan = BatchPlan(data.index, epochs=2, batch_dialogues=6, micro_batch_tokens=96, seed=0)
    model = AutoModelForCausalLM.from_pretrained(pivot, dtype=torch.float32).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.999)
    )
    expected = []
    dialogues = random_dialogues(20)
    for step in range(plan.steps):
        rising = math.ceil(0.2 * plan.steps)
        share = (
            (step + 1) / rising
            if step < rising
            else 0.5 * (1 + math.cos(math.pi * (step - rising) / (plan.steps - rising)))
        )
        total, count = 0.0, 0
        for row in plan.rows(step):
            shard, place = data.index[row, :2]
            ids = torch.from_numpy(dialogues[shard * 10 + place].astype(np.int64))
            positions = response_positions(ids.numpy())
            logits = model(ids[None]).logits[0, positions]
            total = total + torch.nn.functional.cross_entropy(logits, ids[positions + 1], reduction="sum")
            count += len(positions)
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * share
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    assert [window.lm_loss for window in windows] == pytest.approx(expected, rel=2e-5)
    trained = weights(tmp_path / "target")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=2e-5)


def divergence(source: Path, model: Path, dialogues: list[np.ndarray], vocabulary: int) -> float:
    """Mean KL from the source to a model over the whole vocabulary, in nats per position."""
    p, q = (
        np.take_along_axis(whole.log_probs, np.argsort(whole.token_ids, 1), 1)
        for whole in (distributions_of(folder, dialogues, vocabulary) for folder in (source, model))
    )
    return float((np.exp(p) * (p - q)).sum(1).mean())


def test_target_moves_to_an_unrelated_source_on_held_out_text(pivot, tmp_path):
    # The source's next token depends on the last one alone, so that few dialogues are enough to learn it from.
    source = write_tiny_llama(tmp_path / "source", seed=2, spread=0.3, attends=False)
    paths = write_fused_shards(tmp_path / "fused", source, random_dialogues(160), top_k=32)
    config = settings(epochs=10, batch_dialogues=16, micro_batch_tokens=512, learning_rate=1e-2, lm_weight=0.1)
    report = train(pivot, paths, tmp_path, config)
    held_out = random_dialogues(16, seed=99)
    before, after = (divergence(source, folder, held_out, VOCABULARY) for folder in (pivot, tmp_path / "target"))
    assert after < 0.5 * before
    assert report.last_fusion_loss < report.first_fusion_loss


def test_real_pivot_moves_to_a_real_source_on_held_out_text(stories_folder, tmp_path):
    # The pivot is stories260K with noise on every matrix; the source is stories260K itself, on text it wrote.
    pivot = tmp_path / "pivot"
    shutil.copytree(stories_folder, pivot)
    torch.manual_seed(5)
    noisy = {
        name: tensor + 0.3 * tensor.std() * torch.randn_like(tensor) if tensor.ndim == 2 else tensor
        for name, tensor in load_file(stories_folder / "model.safetensors").items()
    }
    save_file(noisy, pivot / "model.safetensors", metadata={"format": "pt"})
    stories = written_dialogues(stories_folder, 80, 64)
    paths = write_fused_shards(tmp_path / "fused", stories_folder, stories[:64], top_k=10)
    config = settings(epochs=6, batch_dialogues=8, micro_batch_tokens=512, learning_rate=2e-3, lm_weight=0.5)
    train(pivot, paths, tmp_path, config)
    before, after = (divergence(stories_folder, folder, stories[64:], 512) for folder in (pivot, tmp_path / "target"))
    assert after < 0.5 * before


def test_micro_batches_do_not_change_the_result(pivot, shards, tmp_path):
    train(pivot, shards, tmp_path / "small", settings(micro_batch_tokens=40))
    train(pivot, shards, tmp_path / "large", settings(micro_batch_tokens=4000))
    small, large = weights(tmp_path / "small/target"), weights(tmp_path / "large/target")
    for name in small:
        torch.testing.assert_close(small[name], large[name], rtol=1e-3, atol=2e-5)


def test_packing_does_not_change_the_result(pivot, shards, tmp_path):
    train(pivot, shards, tmp_path / "padded", settings())
    train(pivot, shards, tmp_path / "packed", settings(packing=True))
    padded, packed = weights(tmp_path / "padded/target"), weights(tmp_path / "packed/target")
    for name in padded:
        torch.testing.assert_close(padded[name], packed[name], rtol=1e-3, atol=2e-5)


def test_an_architecture_that_mixes_packed_dialogues_is_refused(shards, tmp_path):
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "pivot")
    with pytest.raises(ModelError, match=r"MambaForCausalLM.*`packing: false`"):
        train(tmp_path / "pivot", shards, tmp_path, settings(packing=True))


def test_same_inputs_same_bytes_and_a_resumed_run_too(pivot, shards, tmp_path):
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 6:
            raise PowerCutError

    config = settings(precision="bfloat16")
    whole = train(pivot, shards, tmp_path / "whole", config)
    again = train(pivot, shards, tmp_path / "again", config)
    with pytest.raises(PowerCutError):
        train(pivot, shards, tmp_path / "cut", config, progress=cut)
    assert not (tmp_path / "cut/target").exists()
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000004"]
    steps = []
    resumed = train(pivot, shards, tmp_path / "cut", config, progress=lambda done, total: steps.append(done))
    assert steps[0] == 5
    assert weights_bytes(tmp_path / "again") == weights_bytes(tmp_path / "cut") == weights_bytes(tmp_path / "whole")
    curves = [[(w.step, w.lm_loss, w.fusion_loss, w.gradient_norm) for w in r.windows] for r in (whole, again, resumed)]
    assert curves[0] == curves[1] == curves[2]
    assert (resumed.steps, resumed.tokens, resumed.positions) == (whole.steps, whole.tokens, whole.positions)


def test_batches_of_tokens_are_resumed_to_the_same_bytes(pivot, shards, tmp_path):
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 3:
            raise PowerCutError

    config = settings(batch_tokens=130, checkpoint_steps=2, epochs=1)
    windows = []
    whole = train(pivot, shards, tmp_path / "whole", config, on_window=windows.append)
    with pytest.raises(PowerCutError):
        train(pivot, shards, tmp_path / "cut", config, progress=cut)
    resumed = train(pivot, shards, tmp_path / "cut", config)
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)
    assert all(window.tokens <= 2 * 130 for window in windows)
    assert weights_bytes(tmp_path / "cut") == weights_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (128, None)),
        ({"batch_dialogues": 4}, (4, None)),
        ({"batch_tokens": 900}, (None, 900)),
        ({"batch_tokens": 900, "batch_dialogues": None}, (None, 900)),
        ({"batch_tokens": 900, "batch_dialogues": 4}, None),
        ({"batch_dialogues": None}, None),
        ({"epochs": 10**9}, None),
        ({"processes": 10**6}, None),
    ],
)
def test_a_batch_has_dialogues_or_tokens_and_numbers_have_limits(given, expected):
    if expected is None:
        with pytest.raises(ValidationError, match=r"exactly one of|less than or equal"):
            TrainingConfig.model_validate(given)
        return
    config = TrainingConfig.model_validate(given)
    assert (config.batch_dialogues, config.batch_tokens) == expected
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("lm_weight", "resumes"),
    [(1.0, True), (0.9, False)],
)
def test_plain_fine_tuning_goes_on_where_only_the_distributions_changed(lm_weight, resumes, pivot, shards, tmp_path):
    class PowerCutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 5:
            raise PowerCutError

    others = []
    for path in shards:
        shard = read_shard(path)
        others.append(tmp_path / path.name)
        write_shard(others[-1], replace(shard, metadata=replace(shard.metadata, model_digest="another source")))
    with pytest.raises(PowerCutError):
        train(pivot, shards, tmp_path, settings(precision="float32"), lm_weight=lm_weight, progress=cut)
    expected = nullcontext() if resumes else pytest.raises(TrainingError, match="another fused shards")
    with expected:
        train(pivot, others, tmp_path, settings(precision="float32"), lm_weight=lm_weight)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"tail": "bucket", "temperature": 1.5}])
def test_settings_that_save_memory_keep_the_result_and_others_change_it(changes, pivot, shards, tmp_path):
    plain = train(pivot, shards, tmp_path / "plain", settings(lm_weight=0.2))
    changed = train(pivot, shards, tmp_path / "changed", settings(lm_weight=0.2, **changes))
    same = [w.fusion_loss for w in changed.windows] == pytest.approx([w.fusion_loss for w in plain.windows], rel=1e-5)
    assert same == ("gradient_checkpointing" in changes)


def test_learning_rate_rises_then_falls():
    config = settings(learning_rate=1.0, warmup_share=0.25)
    rates = [learning_rate(step, 8, config) for step in range(1, 9)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)))
