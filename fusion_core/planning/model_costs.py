"""The cost model: FLOPs and memory of reading and training with a model of known sizes.

A forward pass costs 2 FLOPs per active parameter and token, attention 4 FLOPs per layer, unit of attention width and
pair of tokens, the output embedding 2 FLOPs per entry and response position (only those are computed). Training costs
three forward passes, four with gradient checkpointing (section 2.1, arXiv 2001.08361; section 5.1, arXiv 2205.05198).
"""

from __future__ import annotations

import math

from fusion_core.losses.cross_entropy import DEFAULT_CHUNK_SIZE
from fusion_core.planning.counts import EncodedCounts
from fusion_core.planning.sizes import ModelSize

# Weights, gradients and the two moments of AdamW, all float32.
TRAINING_BYTES_PER_PARAMETER = 16
# Interpreter, torch and transformers; on a GPU its context is of like size.
RUNTIME_BYTES = 450_000_000
# What allocators hold beyond what is in use; with it the model is within 10 % of four measured training peaks.
ALLOCATOR_FACTOR = 1.1


def forward_flops(size: ModelSize, counts: EncodedCounts) -> float:
    """Return the floating-point operations of reading these dialogues once."""
    attention = 4.0 * (size.layers or 0) * (size.attention_width or 0) * counts.squared_tokens
    head = 2.0 * (size.vocabulary or 0) * (size.hidden_size or 0) * counts.positions
    return 2.0 * size.active_parameters * counts.tokens + attention + head


def training_flops(size: ModelSize, counts: EncodedCounts, *, checkpointing: bool) -> float:
    """Return the floating-point operations of one epoch on these dialogues."""
    return (4.0 if checkpointing else 3.0) * forward_flops(size, counts)


def training_memory(size: ModelSize, tokens: int, *, checkpointing: bool, dtype_bytes: int) -> int:
    """Return the peak bytes of training on micro-batches of this many tokens, padding included.

    Float32 weights, gradients and AdamW's moments; autocast's copy of the weights in half precision; the activations
    that the backward pass needs (of every layer, or with gradient checkpointing of one layer and every layer's input);
    one chunk of logits with its gradient, and the output embedding's gradient; interpreter and libraries.
    """
    memory = float(RUNTIME_BYTES + TRAINING_BYTES_PER_PARAMETER * size.parameters)
    if dtype_bytes < 4:
        memory += dtype_bytes * size.parameters
    if checkpointing:
        memory += tokens * ((size.layers or 0) * (size.hidden_size or 0) * 4 + _activation_bytes(size, dtype_bytes))
    else:
        memory += tokens * (size.layers or 0) * _activation_bytes(size, dtype_bytes)
    head = 4 * (size.vocabulary or 0) * (size.hidden_size or 0)
    return math.ceil(ALLOCATOR_FACTOR * (memory + _logits_bytes(size) + head))


def reading_memory(size: ModelSize, tokens: int, *, dtype_bytes: int) -> int:
    """Return the peak bytes of a forward pass over this many tokens, padding included."""
    memory = RUNTIME_BYTES + size.parameters * dtype_bytes + tokens * _activation_bytes(size, dtype_bytes)
    return math.ceil(ALLOCATOR_FACTOR * (memory + _logits_bytes(size)))


def _activation_bytes(size: ModelSize, dtype_bytes: int) -> int:
    """Bytes of one layer's activations per token, as measured; zero where only the parameters are known."""
    # Norms and residual sums stay in float32 under autocast; queries, keys, values, attention's output and the
    # feed-forward part's four products do not.
    exact = 5 * 4 * (size.hidden_size or 0)
    return exact + 4 * dtype_bytes * ((size.attention_width or 0) + (size.intermediate_size or 0))


def _logits_bytes(size: ModelSize) -> int:
    return 2 * 4 * DEFAULT_CHUNK_SIZE * (size.vocabulary or 0)
