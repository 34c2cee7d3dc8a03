"""One fusion training step against plain fine-tuning: time and peak memory.

    python -m benchmarks.fusion_step --vocabulary 32000
    python -m benchmarks.fusion_step --vocabulary 152000

A step is forward and backward pass of a small Llama-class model over one sequence of 2,048 tokens that all carry loss,
without the optimizer, which is the same for all:

a  plain fine-tuning with the model's own loss
b  plain fine-tuning with the chunked fused linear cross-entropy, which knows no fused distributions
c  fusion training: the same chunks against the mixture of label and fused distribution
d  fusion training with two dense [T, V] targets, as the paper's code builds them

Times are medians over rounds in which the four take turns, and ratios the median of the rounds' ratios, so that what
else the machine does falls on both sides. On a CPU the ratio of processor times is shown too: a busy machine disturbs
it least. Memory is the peak over the process at rest with model and data, each way in a process of its own. Budget:
c at most 1.05 x b in both.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_core.devices import compute_dtype
from fusion_core.losses.cross_entropy import fusion_cross_entropy

WAYS = {
    "a": "plain SFT, the model's own loss",
    "b": "plain SFT, chunked fused linear cross-entropy",
    "c": "fusion training",
    "d": "fusion training, dense [T, V] targets",
}
TOP_K = 10
LM_WEIGHT = 0.9


def build(vocabulary: int, tokens: int, device: torch.device) -> tuple[LlamaForCausalLM, dict[str, Tensor]]:
    """Return a model of the given vocabulary and one sequence with random fused distributions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=tokens + 1,
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).train()
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper loses the types
    ids = torch.randint(0, vocabulary, (1, tokens + 1))
    log_probs = torch.log_softmax(torch.randn(tokens, TOP_K), 1).sort(1, descending=True).values - 0.1
    data = {
        "input_ids": ids[:, :-1],
        "labels": ids[0, 1:],
        "token_ids": torch.randint(0, vocabulary, (tokens, TOP_K)),
        "log_probs": log_probs,
        "source_token_ids": torch.randint(0, vocabulary, (tokens, TOP_K)),
    }
    return model, {name: tensor.to(device) for name, tensor in data.items()}


def loss_of(way: str, model: LlamaForCausalLM, data: dict[str, Tensor], chunk_size: int) -> Tensor:
    """Return the loss of one way."""
    labels = data["labels"]
    if way == "a":
        # The model shifts its labels itself, so they are given unshifted, with one more at the end.
        return model(data["input_ids"], labels=torch.cat([data["input_ids"][0, :1], labels[:-1]])[None]).loss
    if way == "d":
        return dense_targets_loss(model(data["input_ids"]).logits[0], data)
    hidden = model.model(data["input_ids"]).last_hidden_state[0]
    entries = (data["token_ids"], data["log_probs"]) if way == "c" else (data["token_ids"][:, :0],) * 2
    return fusion_cross_entropy(
        hidden,
        model.lm_head.weight,
        labels,
        entries[0],
        entries[1].float(),
        lm_weight=LM_WEIGHT if way == "c" else 1.0,
        chunk_size=chunk_size,
    ).loss


def dense_targets_loss(logits_TV: Tensor, data: dict[str, Tensor]) -> Tensor:
    """Return the loss from dense targets of pivot and source, the better of which is taken."""
    shares = torch.softmax(data["log_probs"], 1)
    targets = [
        torch.zeros(logits_TV.shape, device=logits_TV.device).scatter_(1, data[name], shares)
        for name in ("token_ids", "source_token_ids")
    ]
    logits_TV = logits_TV.float()
    losses = [torch.nn.functional.cross_entropy(logits_TV, target, reduction="none") for target in targets]
    fusion = torch.where((losses[0] < losses[1]).any(), losses[0], losses[1]).mean()
    return LM_WEIGHT * torch.nn.functional.cross_entropy(logits_TV, data["labels"]) + (1 - LM_WEIGHT) * fusion


def step(way: str, model: LlamaForCausalLM, data: dict[str, Tensor], chunk_size: int) -> None:
    """Run forward and backward pass, and give the gradients back."""
    device = data["labels"].device.type
    dtype = compute_dtype("auto", data["labels"].device)
    with torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32):
        loss = loss_of(way, model, data, chunk_size)
    loss.backward()
    model.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(action: Callable[[], None]) -> tuple[float, float]:
    """Return the wall time and the processor time of an action."""
    started = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def peak_bytes(way: str, vocabulary: int, tokens: int, chunk_size: int, device: torch.device) -> int:
    """Return the peak of two steps over the process at rest."""
    model, data = build(vocabulary, tokens, device)
    # A tiny step first, so that libraries' own memory is there before the measurement.
    warm_model, warm_data = build(512, 64, device)
    step(way, warm_model, warm_data, chunk_size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        rest = torch.cuda.memory_allocated()
    else:
        with open("/proc/self/status", encoding="ascii") as status:
            rest = 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])
    for _ in range(2):
        step(way, model, data, chunk_size)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() - rest
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--ways", default="abcd")
    parser.add_argument("--peak-of", choices=sorted(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.peak_of:
        print(peak_bytes(arguments.peak_of, arguments.vocabulary, arguments.tokens, arguments.chunk_size, device))
        return
    shape = ["--vocabulary", str(arguments.vocabulary), "--tokens", str(arguments.tokens)]
    shape += ["--chunk-size", str(arguments.chunk_size)]
    peaks = {
        way: int(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.fusion_step", *shape, "--peak-of", way],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for way in arguments.ways
    }
    model, data = build(arguments.vocabulary, arguments.tokens, device)
    for way in arguments.ways:
        step(way, model, data, arguments.chunk_size)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in arguments.ways}
    for number in range(arguments.rounds):
        order = arguments.ways if number % 2 == 0 else arguments.ways[::-1]
        for way in order:
            times[way].append(seconds(partial(step, way, model, data, arguments.chunk_size)))
    print(
        f"V = {arguments.vocabulary:,}, T = {arguments.tokens:,}, k = {TOP_K}, {compute_dtype('auto', device)}, "
        f"{device.type}, {torch.get_num_threads()} threads, medians of {arguments.rounds} rounds"
    )
    print(f"{'way':<50} {'s/step':>8} {'x b':>6} {'processor s':>12} {'x b':>6} {'peak MB':>9} {'x b':>6}")
    for way in arguments.ways:
        row = f"{way}  {WAYS[way]:<47}"
        for clock, width in ((0, 8), (1, 12)):
            mine, base = ([pair[clock] for pair in times[name]] for name in (way, "b"))
            ratio = statistics.median(one / other for one, other in zip(mine, base, strict=True))
            row += f" {statistics.median(mine):>{width}.3f} {ratio:>6.3f}"
        print(f"{row} {peaks[way] / 1e6:>9.0f} {peaks[way] / peaks['b']:>6.3f}")


if __name__ == "__main__":
    main()
