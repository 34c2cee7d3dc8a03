"""Trains the demo's adapters. Only needed to make them anew; they are committed under `adapters/`.

    python -m deployments.demo.make_adapters pivot --data CORPORA
    python -m deployments.demo.make_adapters maths --data CORPORA
    python -m deployments.demo.make_adapters dialogue --data CORPORA

CORPORA holds the corpora that `raw_data` lists. Recipe: rank 8 on every projection, and on the tied embedding where
the tokenizer was exchanged; AdamW at 1e-3, five steps of warm-up, then linearly to zero; batches of 8 dialogues of
at most 320 tokens; cross-entropy of the response tokens alone; bfloat16 autocast; seed 0. No dialogue that opens
like a committed one is trained on.
"""

import argparse
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deployments.demo import adapters, raw_data
from deployments.demo.build_models import ADAPTERS, MODELS, assemble, read_body, with_tokenizer

STEPS = {"pivot": 60, "maths": 80, "dialogue": 80}
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 5
BATCH = 8
MAX_TOKENS = 320
SEED = 0
RESPONSE = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """One dialogue: token ids [T] and, for each, whether it belongs to a response (its end mark included)."""

    ids: list[int]
    response: list[bool]


def encode(dialogue: raw_data.Dialogue, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Write a dialogue in the tokenizer's chat template and mark the tokens of its responses."""
    text = str(tokenizer.apply_chat_template(dialogue, tokenize=False))
    spans = [match.span(1) for match in RESPONSE.finditer(text)]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    response = [any(start <= first < end for start, end in spans) for first, _ in encoding["offset_mapping"]]
    return Encoded(encoding["input_ids"], response)


def response_cross_entropy(model: LlamaForCausalLM, batch: list[Encoded]) -> Tensor:
    """Mean cross-entropy of the response tokens of a batch, in nats."""
    width = max(len(dialogue.ids) for dialogue in batch)
    ids = torch.tensor([dialogue.ids + [0] * (width - len(dialogue.ids)) for dialogue in batch])
    response = torch.tensor([dialogue.response + [False] * (width - len(dialogue.ids)) for dialogue in batch])
    # Padding stands on the right, where causal attention keeps it from every real token: no mask is needed.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][response[:, 1:]]
        logits = model.lm_head(hidden)
    return functional.cross_entropy(logits.float(), ids[:, 1:][response[:, 1:]])


def draw_pool(
    name: str, corpora: Path, tokenizer: PreTrainedTokenizerFast, chance: random.Random
) -> list[tuple[raw_data.Dialogue, Encoded]]:
    """The dialogues that one model's adapter is trained on, each with its encoding."""
    pool: list[tuple[raw_data.Dialogue, Encoded]] = []
    domains = MODELS[name].domains
    for domain in domains:
        found = [(one, encode(one, tokenizer)) for one in raw_data.training_dialogues(corpora, domain)]
        short = [pair for pair in found if len(pair[1].ids) <= MAX_TOKENS]
        pool += chance.sample(short, min(len(short), BATCH * STEPS[name] // len(domains)))
    return pool


def batches(dialogues: list[Encoded], steps: int, chance: random.Random) -> list[list[Encoded]]:
    """Random batches whose dialogues are of like length: groups of eight batches are sorted, cut and mixed."""
    drawn: list[list[Encoded]] = []
    while len(drawn) < steps:
        group = sorted(chance.sample(dialogues, min(8 * BATCH, len(dialogues))), key=lambda item: len(item.ids))
        cut = [group[start : start + BATCH] for start in range(0, len(group), BATCH)]
        drawn += chance.sample(cut, len(cut))
    return drawn[:steps]


def fit(
    name: str,
    model: LlamaForCausalLM,
    factors: dict[str, Tensor],
    pool: list[Encoded],
    steps: int,
    chance: random.Random,
) -> None:
    """Train the factors attached to a model on batches drawn from a pool."""
    optimizer = torch.optim.AdamW(factors.values(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, (steps - step) / (steps - WARM_UP_STEPS))
    )
    for step, batch in enumerate(batches(pool, steps, chance), start=1):
        loss = response_cross_entropy(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"{name}: step {step} of {steps}, {loss.item():.3f} nats per response token", flush=True)


def train(name: str, corpora: Path) -> None:
    """Train the adapter of one model and write it to `adapters/`."""
    demo_model = MODELS[name]
    config, body = read_body()
    weights, tokenizer = with_tokenizer(body, demo_model)
    model = assemble(config, weights, tokenizer)
    factors = adapters.attach(model, change_embedding=not demo_model.own_tokenizer, seed=SEED)

    chance = random.Random(SEED)
    pool = [encoded for _, encoded in draw_pool(name, corpora, tokenizer, chance)]

    fit(name, model, factors, pool, STEPS[name], chance)
    adapters.save(factors, ADAPTERS / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora that raw_data lists")
    arguments = parser.parse_args()
    train(arguments.name, arguments.data)


if __name__ == "__main__":
    main()
