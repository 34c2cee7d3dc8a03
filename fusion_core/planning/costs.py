"""FLOPs, seconds, bytes and memory of every stage of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fusion_core.config import FusionConfig
from fusion_core.planning.counts import EncodedCounts
from fusion_core.planning.model_costs import forward_flops, reading_memory, training_flops, training_memory
from fusion_core.planning.plan import Plan, PlanRow
from fusion_core.planning.sizes import ModelSize
from fusion_core.planning.throughput import DeviceThroughput

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
CONTROL_SUBJECT = "plain-sft"
FUSED_SUBJECT = "fused"


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


def _stored_bytes(size: ModelSize) -> int:
    return math.ceil(size.parameters * size.stored_bytes_per_parameter)


def _bytes_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
