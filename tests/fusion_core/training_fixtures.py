"""Tiny real models and fused shards for the training tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fusion_core.config import TrainingConfig
from fusion_core.distributions import TopK
from fusion_core.shards import Shard, ShardMetadata, TrainingInputs, write_shard
from fusion_core.training.target import train_target

VOCABULARY = 96
CPU = torch.device("cpu")


def write_tiny_llama(
    folder: Path, *, seed: int = 0, tied: bool = False, dtype=torch.float32, spread: float = 0.02, attends: bool = True
) -> Path:
    """Write a randomly initialised Llama-class checkpoint of two layers; one that does not attend sees one token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=spread,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if not attends:
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def random_dialogues(count: int, seed: int = 0, longest: int = 40, vocabulary: int = VOCABULARY) -> list[np.ndarray]:
    """Return token ids of dialogues of different lengths."""
    draws = np.random.default_rng(seed)
    return [draws.integers(3, vocabulary, draws.integers(8, longest)).astype(np.int32) for _ in range(count)]


@torch.no_grad()
def written_dialogues(model_folder: Path, count: int, length: int) -> list[np.ndarray]:
    """Let a model write texts from its beginning-of-text token, by sampling."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    torch.manual_seed(3)
    ids = torch.full((count, 1), model.config.bos_token_id)
    while ids.shape[1] < length:
        ids = torch.cat([ids, torch.multinomial(model(ids).logits[:, -1].softmax(-1), 1)], 1)
    return list(ids.int().numpy())


def response_positions(ids: np.ndarray) -> np.ndarray:
    """Take the first third as the prompt and the rest as the response."""
    return np.arange(len(ids) // 3, len(ids) - 1, dtype=np.int32)


@torch.no_grad()
def distributions_of(model_folder: Path, dialogues: list[np.ndarray], top_k: int) -> TopK:
    """Return a model's own top-k distributions at the response positions, by the plain dense way."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    rows, labels = [], []
    for ids in dialogues:
        positions = response_positions(ids)
        log_probs = torch.log_softmax(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0], -1)
        rows.append(log_probs[positions])
        labels.append(torch.from_numpy(ids[positions + 1].astype(np.int64)))
    log_probs = torch.cat(rows)
    values, ids = log_probs.topk(top_k)
    splits = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    gold = log_probs.gather(1, torch.cat(labels)[:, None]).squeeze(1)
    return TopK(ids.int().numpy(), values.numpy(), gold.numpy(), splits)


def fused_shard(dialogues: list[np.ndarray], top_k: TopK, first: int = 0, truncation="top_k") -> Shard:
    """Return a fused shard that holds these dialogues' inputs and distributions."""
    return Shard(
        top_k,
        [f"dialogue{first + number:04d}" for number in range(len(dialogues))],
        ["test"] * len(dialogues),
        np.full(len(dialogues), 10, np.int64),
        ShardMetadata("model", "dataset", top_k.top_k, truncation),
        TrainingInputs(
            np.concatenate(dialogues),
            np.cumsum([0] + [len(ids) for ids in dialogues]).astype(np.int64),
            np.concatenate([response_positions(ids) for ids in dialogues]),
        ),
    )


def write_fused_shards(folder: Path, model_folder: Path, dialogues: list[np.ndarray], top_k: int = 8, shards: int = 2):
    """Write fused shards with one model's distributions; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, part in enumerate(np.array_split(np.arange(len(dialogues)), shards)):
        chosen = [dialogues[place] for place in part]
        path = folder / f"shard-{number:05d}.parquet"
        write_shard(path, fused_shard(chosen, distributions_of(model_folder, chosen, top_k), int(part[0])))
        paths.append(path)
    return paths


def settings(**changes) -> TrainingConfig:
    batch = {} if "batch_tokens" in changes else {"batch_dialogues": 6}
    return TrainingConfig(
        **{
            **batch,
            "epochs": 2,
            "micro_batch_tokens": 96,
            "learning_rate": 3e-3,
            "warmup_share": 0.2,
            "precision": "float32",
            "checkpoint_steps": 4,
            "window_steps": 2,
            **changes,
        }
    )


def train(pivot, shards, folder, config, **options):
    return train_target(
        pivot, shards, folder / "target", config, checkpoint_folder=folder / "checkpoints", device=CPU, **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def weights_bytes(folder: Path) -> bytes:
    return (folder / "target/model.safetensors").read_bytes()
