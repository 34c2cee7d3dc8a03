"""The cost model: FLOPs, seconds, bytes and memory of every stage of a recipe.

A forward pass costs 2 FLOPs per active parameter and token, attention 4 FLOPs per layer, unit of attention width and
pair of tokens, the output embedding 2 FLOPs per entry and response position (only those are computed). Training costs
three forward passes, four with gradient checkpointing (section 2.1, arXiv 2001.08361; section 5.1, arXiv 2205.05198).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from fusion_core.config import FusionConfig
from fusion_core.losses import DEFAULT_CHUNK_SIZE
from fusion_core.planning.counts import EncodedCounts
from fusion_core.planning.sizes import ModelSize
from fusion_core.planning.throughput import DeviceThroughput
from fusion_core.record import Record

Status = Literal["cached", "compute", "unknown"]

# Achieved share of a large matrix product's FLOP/s: norms, activations and small shapes take the rest. Measured
# with a model of 135M parameters on a processor; assumed for GPUs.
FORWARD_EFFICIENCY = {"cpu": {"float32": 0.6, "bfloat16": 0.4}, "cuda": {"float32": 0.7, "bfloat16": 0.5}}
TRAINING_EFFICIENCY = {"cpu": {"float32": 0.7, "bfloat16": 0.4}, "cuda": {"float32": 0.6, "bfloat16": 0.4}}
# One core, bytes mode; DTW is quadratic in the length and has no such figure.
ALIGNED_POSITIONS_PER_SECOND = 300_000
DISK_BYTES_PER_SECOND = 500e6
# The shard format's budget; chat text with k = 10 was measured at 3.7 bytes an entry.
BYTES_PER_ENTRY = 4
# A fused shard also carries token ids and positions, which compress well.
TRAINING_INPUT_BYTES_PER_POSITION = 4
# Weights, gradients and the two moments of AdamW, all float32.
TRAINING_BYTES_PER_PARAMETER = 16
# Interpreter, torch and transformers; on a GPU its context is of like size.
RUNTIME_BYTES = 450_000_000
# What allocators hold beyond what is in use; with it the model is within 10 % of four measured training peaks.
ALLOCATOR_FACTOR = 1.1
CONTROL_SUBJECT = "plain-sft"
FUSED_SUBJECT = "fused"


class PlanRow(Record):
    """One unit of work; None where it cannot be known.

    Parameters
    ----------
    stage, subject : str
        Stage is one of prepare, extract, fuse, train, merge, evaluate; subject the model or target it is for.
    status : str
        cached, compute or unknown; ``plan_costs`` leaves 'compute' everywhere, as it does not look into the store.
    dialogues, tokens, positions : int or None
        tokens are passed through a model, once per epoch in training.
    flops : float or None
    seconds : float or None
        On the device of the plan.
    bytes : int or None
        Written to the store.
    memory_bytes : int or None
        Peak, on the device where it has its own memory.
    """

    stage: str
    subject: str
    status: Status = "compute"
    dialogues: int | None = None
    tokens: int | None = None
    positions: int | None = None
    flops: float | None = None
    seconds: float | None = None
    bytes: int | None = None
    memory_bytes: int | None = None


class Plan(Record):
    """All rows in the order of the method, the device they are for, and in plain sentences what is not known."""

    name: str
    device: DeviceThroughput
    rows: tuple[PlanRow, ...]
    estimated: bool
    unknown: tuple[str, ...] = ()

    def with_status(self, status: Mapping[tuple[str, str], Status]) -> Plan:
        """Return the plan with the status of some rows set, by (stage, subject)."""
        rows = [
            row.model_copy(update={"status": status.get((row.stage, row.subject), row.status)}) for row in self.rows
        ]
        return self.model_copy(update={"rows": tuple(rows)})

    def total(self, field: Literal["flops", "seconds", "bytes"]) -> float:
        """Sum a column over what is not cached, as far as it is known."""
        return float(sum(getattr(row, field) or 0 for row in self.rows if row.status != "cached"))

    @property
    def memory_bytes(self) -> int:
        """Largest memory that any row not cached needs, as far as it is known."""
        return max((row.memory_bytes or 0 for row in self.rows if row.status != "cached"), default=0)


def plan_costs(
    config: FusionConfig,
    *,
    models: Mapping[str, ModelSize],
    train: Mapping[str, EncodedCounts],
    held_out: Mapping[str, EncodedCounts],
    device: DeviceThroughput,
    fast_bfloat16: bool,
    unknown: tuple[str, ...] = (),
) -> Plan:
    """Estimate every stage of a recipe.

    Parameters
    ----------
    config : FusionConfig
    models : mapping from model name to ModelSize
        Models that are not in it get rows without figures.
    train, held_out : mapping from model name to EncodedCounts
        Dialogues in the tokens of each model; missing where the data or the tokenizer cannot be read.
    device : DeviceThroughput
    fast_bfloat16 : bool
        Whether 'auto' precision means bf16 on the device.
    unknown : tuple of str
        What reading models and data already found that cannot be known.
    """
    estimator = _Estimator(config, models, train, held_out, device, fast_bfloat16)
    rows = estimator.rows()
    gaps = list(unknown)
    for name in (config.pivot.name, *(source.name for source in config.sources)):
        if name not in models and not any(repr(name) in line for line in gaps):
            gaps.append(f"Model {name!r}: its size is unknown, so its FLOPs and memory are.")
    if not train:
        gaps.append("The dialogues could not be read, so tokens, positions, FLOPs, bytes and hours are unknown.")
    if config.alignment.positions == "dtw":
        gaps.append("Alignment by dynamic time warping is quadratic in the length; its time is not estimated.")
    counts = [*train.values(), *held_out.values()]
    return Plan(
        name=config.name,
        device=device,
        rows=tuple(rows),
        estimated=any(not count.exact and count.counted for count in counts),
        unknown=tuple(gaps),
    )


class _Estimator:
    def __init__(
        self,
        config: FusionConfig,
        models: Mapping[str, ModelSize],
        train: Mapping[str, EncodedCounts],
        held_out: Mapping[str, EncodedCounts],
        device: DeviceThroughput,
        fast_bfloat16: bool,
    ) -> None:
        self.config = config
        self.models = models
        self.train = train
        self.held_out = held_out
        self.device = device
        self.fast_bfloat16 = fast_bfloat16

    def rows(self) -> list[PlanRow]:
        config = self.config
        pivot, sources = config.pivot.name, [source.name for source in config.sources]
        targets = sources if config.strategy == "pairwise" else ["joint"]
        rows = [self._prepare()]
        rows += [self._read("extract", name, name, self.train.get(name)) for name in (pivot, *sources)]
        rows += [self._fuse(name, len(sources) if config.strategy == "joint" else 1) for name in targets]
        rows += [self._train(name) for name in targets]
        controls = [CONTROL_SUBJECT] if config.evaluation.plain_sft_control else []
        rows += [self._train(name) for name in controls]
        merged = [FUSED_SUBJECT] if config.strategy == "pairwise" else []
        rows += [self._merge(len(targets)) for _ in merged]
        rows += [self._read("evaluate", name, name, self.held_out.get(name)) for name in (pivot, *sources)]
        # A joint target is the fused model itself.
        trained = [*(f"target-{name}" for name in targets if merged), *controls, FUSED_SUBJECT]
        rows += [self._read("evaluate", name, pivot, self.held_out.get(pivot)) for name in trained]
        return rows

    def _prepare(self) -> PlanRow:
        counts = [counts.dialogues for counts in self.train.values()]
        return PlanRow(stage="prepare", subject="dialogues", dialogues=max(counts) if counts else None)

    def _read(self, stage: str, subject: str, model: str, counts: EncodedCounts | None) -> PlanRow:
        size = self.models.get(model)
        row = PlanRow(stage=stage, subject=subject)
        dtype = self._dtype(next(m.dtype for m in (self.config.pivot, *self.config.sources) if m.name == model))
        if size is not None:
            batch = self.config.extraction.batch_tokens if stage == "extract" else self.config.evaluation.batch_tokens
            memory = reading_memory(size, batch, dtype_bytes=_bytes_of(dtype))
            row = row.model_copy(update={"memory_bytes": memory})
        if counts is None:
            return row
        row = row.model_copy(
            update={"dialogues": counts.dialogues, "tokens": counts.tokens, "positions": counts.positions}
        )
        if stage == "extract":
            row = row.model_copy(update={"bytes": counts.positions * self._bytes_per_position()})
        if size is None:
            return row
        flops = forward_flops(size, counts)
        rate = self.device.flops_per_second[dtype] * FORWARD_EFFICIENCY[self.device.kind][dtype]
        return row.model_copy(update={"flops": flops, "seconds": flops / rate})

    def _fuse(self, subject: str, sources: int) -> PlanRow:
        counts = self.train.get(self.config.pivot.name)
        if counts is None:
            return PlanRow(stage="fuse", subject=subject)
        by_bytes = self.config.alignment.positions == "bytes"
        return PlanRow(
            stage="fuse",
            subject=subject,
            dialogues=counts.dialogues,
            positions=counts.positions,
            seconds=sources * counts.positions / ALIGNED_POSITIONS_PER_SECOND if by_bytes else None,
            bytes=counts.positions * (self._bytes_per_position() + TRAINING_INPUT_BYTES_PER_POSITION),
        )

    def _train(self, subject: str) -> PlanRow:
        size, counts = self.models.get(self.config.pivot.name), self.train.get(self.config.pivot.name)
        training = self.config.training
        dtype = self._dtype(training.precision)
        row = PlanRow(stage="train", subject=subject)
        if size is not None:
            memory = training_memory(
                size,
                training.micro_batch_tokens,
                checkpointing=training.gradient_checkpointing,
                dtype_bytes=_bytes_of(dtype),
            )
            row = row.model_copy(update={"memory_bytes": memory, "bytes": _stored_bytes(size)})
        if counts is None:
            return row
        row = row.model_copy(
            update={
                "dialogues": counts.dialogues,
                "tokens": counts.tokens * training.epochs,
                "positions": counts.positions * training.epochs,
            }
        )
        if size is None:
            return row
        flops = training.epochs * training_flops(size, counts, checkpointing=training.gradient_checkpointing)
        rate = self.device.flops_per_second[dtype] * TRAINING_EFFICIENCY[self.device.kind][dtype]
        return row.model_copy(update={"flops": flops, "seconds": flops / rate})

    def _merge(self, targets: int) -> PlanRow:
        size = self.models.get(self.config.pivot.name)
        if size is None:
            return PlanRow(stage="merge", subject=FUSED_SUBJECT)
        stored = _stored_bytes(size)
        largest = (size.vocabulary or 0) * (size.hidden_size or 0) * 4
        return PlanRow(
            stage="merge",
            subject=FUSED_SUBJECT,
            bytes=stored,
            seconds=2 * (targets + 2) * stored / DISK_BYTES_PER_SECOND,
            memory_bytes=(targets + 2) * largest or None,
        )

    def _bytes_per_position(self) -> int:
        return BYTES_PER_ENTRY * self.config.extraction.top_k

    def _dtype(self, name: str) -> str:
        if name == "auto":
            return "bfloat16" if self.fast_bfloat16 else "float32"
        # Half precision runs at the rate of bf16 wherever either is fast.
        return "bfloat16" if name == "float16" else name


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


def _stored_bytes(size: ModelSize) -> int:
    return math.ceil(size.parameters * size.stored_bytes_per_parameter)


def _bytes_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
