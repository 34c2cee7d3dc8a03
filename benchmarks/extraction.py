"""Extraction over its floor: time and peak memory, for vocabularies of 32,000 and 152,000.

    python -m benchmarks.extraction
    python -m benchmarks.extraction --vocabulary 32000 --dtype float32

A Llama-class model (hidden size 1024, 12 layers, random weights) reads dialogues of different lengths, of whose tokens
three in five are response positions:

floor         the body's forward pass over the same batches, and the product of the hidden states at response positions
              with the output embedding, whose result is dropped
extraction    `extract_shard`, which leaves top-10 distributions and label log-probabilities
materialised  the model's own logits at all positions, their log-softmax in float32, top-10

Times are medians over rounds in which the ways take turns, the ratio the median of the rounds' ratios; on a processor
they are the process's own time on one thread, which other work on the machine disturbs little. Memory is the peak over
the process at rest with model and data, each way in a process of its own. Budget: extraction at most 1.10 x its floor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_core.batching import pad_right, token_batches
from fusion_core.config import ExtractionConfig
from fusion_core.devices import compute_dtype, default_device
from fusion_core.extraction.extract import extract_shard
from fusion_core.extraction.top_k_logits import default_chunk_size

BUDGET = 1.10
WAYS = ("floor", "extraction", "materialised")
RESPONSE_SHARE = 0.6


@dataclass(frozen=True)
class Dialogue:
    """Random tokens, the last three in five of them a response."""

    dialogue_id: str
    input_ids: np.ndarray
    response_positions: np.ndarray


def some_dialogues(tokens: int, vocabulary: int) -> list[Dialogue]:
    """Return dialogues of 100 to 400 tokens, in all about as many as asked for."""
    random = np.random.default_rng(0)
    dialogues: list[Dialogue] = []
    while tokens > 0:
        length = int(random.integers(100, 401))
        positions = np.arange(int(length * (1 - RESPONSE_SHARE)), length - 1, dtype=np.int32)
        ids = random.integers(0, vocabulary, length).astype(np.int32)
        dialogues.append(Dialogue(str(len(dialogues)), ids, positions))
        tokens -= length
    return dialogues


def build(vocabulary: int, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """Return a model of the given vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(device=device, dtype=dtype).eval()


@torch.inference_mode()
def floor(model: Any, dialogues: list[Dialogue], budget: int) -> None:
    """Body and product, in the batches and chunks of extraction."""
    weight = model.get_output_embeddings().weight
    for batch in _batches(dialogues, budget):
        hidden = model.model(input_ids=_padded(batch, model.device), use_cache=False).last_hidden_state
        for part in hidden[_places(batch)].split(default_chunk_size(len(weight), model.device)):
            torch.mm(part, weight.T)


@torch.inference_mode()
def materialised(model: Any, dialogues: list[Dialogue], budget: int) -> None:
    """All logits of a batch, then log-softmax and top-k."""
    for batch in _batches(dialogues, budget):
        logits = model(input_ids=_padded(batch, model.device), use_cache=False).logits
        logits.float().log_softmax(-1)[_places(batch)].topk(10)


def _batches(dialogues: list[Dialogue], budget: int) -> list[list[Dialogue]]:
    lengths = [int(dialogue.response_positions[-1]) + 1 for dialogue in dialogues]
    return [[dialogues[index] for index in batch] for batch in token_batches(lengths, budget)]


def _padded(batch: list[Dialogue], device: torch.device) -> torch.Tensor:
    ids = [dialogue.input_ids[: int(dialogue.response_positions[-1]) + 1] for dialogue in batch]
    return torch.from_numpy(pad_right(ids, fill=0)).to(device)


def _places(batch: list[Dialogue]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.repeat(np.arange(len(batch)), [len(dialogue.response_positions) for dialogue in batch])
    columns = np.concatenate([dialogue.response_positions for dialogue in batch])
    return torch.from_numpy(rows), torch.from_numpy(columns.astype(np.int64))


def work_of(way: str, model: Any, dialogues: list[Dialogue], budget: int) -> Callable[[], object]:
    """Return what one round of a way does."""
    if way == "extraction":
        config, size = ExtractionConfig(batch_tokens=budget), range(model.config.vocab_size)
        return lambda: extract_shard(model, size, dialogues, config, model_name="benchmark", device=model.device)
    if way == "floor":
        return lambda: floor(model, dialogues, budget)
    return lambda: materialised(model, dialogues, budget)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one round."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mebibytes(way: str, arguments: argparse.Namespace, vocabulary: int) -> float:
    """Run one round in a fresh process and return its peak over the process at rest."""
    options = ["--only", way, "--vocabulary", str(vocabulary), "--tokens", str(arguments.tokens)]
    options += ["--dtype", arguments.dtype, "--batch-tokens", str(arguments.batch_tokens)]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.extraction", *options], check=True, capture_output=True, text=True
    )
    return float(found.stdout.strip().splitlines()[-1])


def _one_round(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
    vocabulary = arguments.vocabulary[0]
    model = build(vocabulary, dtype, device)
    # A short text first, so that what is set up once is no part of the peak.
    work_of(arguments.only, model, some_dialogues(1, vocabulary), arguments.batch_tokens)()
    work = work_of(arguments.only, model, some_dialogues(arguments.tokens, vocabulary), arguments.batch_tokens)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    # The model was built in float32, so the process's peak so far is no measure: this forgets it.
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = _process_kibibytes("VmRSS")
    work()
    print((_process_kibibytes("VmHWM") - before_kib) / 2**10)


def _process_kibibytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> int:
    """Print one table per vocabulary; return 1 when extraction misses its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 152_000], help="vocabulary sizes")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of all dialogues (default: 2048)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a batch (default: 2048)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="default: auto")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = default_device()
    dtype = compute_dtype(arguments.dtype, device)
    torch.set_num_threads(1)
    if arguments.only:
        _one_round(arguments, device, dtype)
        return 0
    fits = True
    for vocabulary in arguments.vocabulary:
        model, dialogues = build(vocabulary, dtype, device), some_dialogues(arguments.tokens, vocabulary)
        works = {way: work_of(way, model, dialogues, arguments.batch_tokens) for way in WAYS}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(arguments.rounds + 1):
            for way, work in works.items():
                taken = seconds(work, device)
                # The first turn warms up.
                if turn:
                    times[way].append(taken)
        positions = sum(len(dialogue.response_positions) for dialogue in dialogues)
        title = f"V = {vocabulary:,}, {positions:,} positions, {str(dtype).removeprefix('torch.')}, {device.type}"
        table = Table("way", "s", "positions/s", "x floor", "range", "peak MiB", title=title)
        for way in WAYS:
            ratios = [own / least for own, least in zip(times[way], times["floor"], strict=True)]
            middle, ratio = statistics.median(times[way]), statistics.median(ratios)
            memory = peak_mebibytes(way, arguments, vocabulary)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            table.add_row(way, f"{middle:.2f}", f"{positions / middle:,.0f}", f"{ratio:.3f}", spread, f"{memory:,.0f}")
            fits &= way != "extraction" or ratio <= BUDGET
        Console().print(table)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
