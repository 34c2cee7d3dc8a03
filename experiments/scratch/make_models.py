"""Trains the toys from nothing, and picks the dialogues to fuse them on.

    python -m experiments.scratch.make_models --data CORPORA --out .fuseline/scratch

CORPORA holds the corpora that `deployments.demo.raw_data` lists. AdamW at 2e-3 with 20 steps of warm-up, then linearly
to zero, batches of 8 dialogues of at most 512 tokens, cross-entropy of all tokens, bfloat16 autocast, seed 0. A model
that is there is kept. No toy sees a dialogue that opens like one of the experiments' or one that toys are fused on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from deployments.demo import raw_data
from deployments.demo.build_models import MODELS
from deployments.demo.make_adapters import Encoded, batches
from experiments.make_data import candidates, split
from experiments.scratch.models import LENGTH, TOYS, Toy
from experiments.sources.models import experiments_openings

SEED = 0
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 20
FUSING = 200
CANDIDATES = 1500
MAX_TOKENS = 192


def pick_fusing(corpora: Path, domain: str, seen: set[str], path: Path) -> set[str]:
    """Write dialogues to fuse on, on the side of the product's split that is trained on, and return their openings."""
    tokenizer = MODELS["pivot"].tokenizer()
    found = candidates(raw_data.training_dialogues(corpora, domain), seen, tokenizer, CANDIDATES, MAX_TOKENS)
    train, _ = split(found, domain)
    rows = [[{"role": turn.role, "content": turn.content} for turn in one.turns] for one in train[:FUSING]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": one}, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return {raw_data.opening(one) for one in rows}


def shares(toy: Toy, corpora: Path, barred: set[str], chance: random.Random) -> list[raw_data.Dialogue]:
    """The dialogues that a toy sees."""
    seen: list[raw_data.Dialogue] = []
    for domain, count in toy.shares.items():
        found = [one for one in raw_data.training_dialogues(corpora, domain) if raw_data.opening(one) not in barred]
        seen += chance.sample(found, min(count, len(found)))
    return seen


def train(toy: Toy, dialogues: list[raw_data.Dialogue], chance: random.Random, folder: Path) -> None:
    """Train one toy and write its checkpoint folder whole or not at all."""
    tokenizer = toy.tokenizer(raw_data.text(one) for one in dialogues)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(
        toy.config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id), dtype=torch.float32
    )
    size = sum(one.numel() for one in model.parameters())
    print(
        f"{folder.name}: {model.config.model_type}, {size / 1e6:.1f}M parameters, {len(dialogues)} dialogues",
        flush=True,
    )
    texts = [str(tokenizer.apply_chat_template(one, tokenize=False)) for one in dialogues]
    pool = [Encoded(ids[:LENGTH], []) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, (toy.steps - step) / (toy.steps - WARM_UP_STEPS))
    )
    for step, batch in enumerate(batches(pool, toy.steps, chance), start=1):
        loss = cross_entropy(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == 1:
            print(f"{folder.name}: step {step} of {toy.steps}, {loss.item():.3f} nats per token", flush=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.eval().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    check_loads_as_itself(tokenizer, partial, texts[:50])
    partial.rename(folder)


def cross_entropy(model: torch.nn.Module, batch: list[Encoded]) -> torch.Tensor:
    """Mean cross-entropy of all tokens of a batch but the first, in nats."""
    width = max(len(one.ids) for one in batch)
    ids = torch.tensor([one.ids + [0] * (width - len(one.ids)) for one in batch])
    labels = torch.tensor([one.ids + [-100] * (width - len(one.ids)) for one in batch])
    # Padding stands on the right, where causal attention keeps it from every real token.
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    return functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())


def check_loads_as_itself(tokenizer: PreTrainedTokenizerFast, folder: Path, texts: list[str]) -> None:
    """Refuse a folder whose tokenizer loads as another one, which the model's type may lead to."""
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        if loaded(text, add_special_tokens=False).input_ids != tokenizer(text, add_special_tokens=False).input_ids:
            raise SystemExit(f"The tokenizer of {folder} splits {text[:60]!r} otherwise once it is loaded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora that raw_data lists")
    parser.add_argument("--out", type=Path, required=True, help="folder to write checkpoints and dialogues into")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    barred = experiments_openings()
    for domain in raw_data.DOMAINS:
        barred |= pick_fusing(arguments.data, domain, barred, arguments.out / "fusing" / f"{domain}.jsonl")
    for name, toy in TOYS.items():
        folder, chance = arguments.out / name, random.Random(SEED)
        if folder.exists():
            print(f"{folder}: kept", flush=True)
            continue
        train(toy, shares(toy, arguments.data, barred, chance), chance, folder)


if __name__ == "__main__":
    main()
