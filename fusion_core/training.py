"""Training a target: the pivot, fine-tuned on fused distributions.

Every optimizer step takes `batch_dialogues` dialogues, in micro-batches of a token budget. Losses are sums over
positions, divided once by the positions of the whole batch, so that neither micro-batches nor processes change the
result beyond rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import AutoConfig

from fusion_core.config import TrainingConfig
from fusion_core.devices import compute_dtype, default_device
from fusion_core.errors import TrainingError
from fusion_core.losses_mixture import Tail
from fusion_core.models import ResolvedModel, load_model
from fusion_core.progress import Advance, ignore_progress
from fusion_core.training_checkpoints import WHOLE, TrainingCheckpoints
from fusion_core.training_data import Batch, BatchPlan, FusedShards, load_batch
from fusion_core.training_interruption import Interruption
from fusion_core.training_metrics import (
    StepResult,
    Stopwatch,
    TrainingHistory,
    TrainingReport,
    TrainingWindow,
)
from fusion_core.training_model import decay_groups, target_model, write_target


def train_target(
    pivot_folder: Path,
    shards: Sequence[Path],
    output: Path,
    config: TrainingConfig,
    *,
    checkpoint_folder: Path,
    lm_weight: float | None = None,
    device: torch.device | None = None,
    progress: Advance = ignore_progress,
    on_window: Callable[[TrainingWindow], None] = lambda window: None,
) -> TrainingReport:
    """Fine-tune the pivot on fused shards and write the target as a plain Hugging Face checkpoint folder.

    Weights and optimizer are float32, products as `config.precision` says. On a CPU the same inputs, settings and
    number of threads give the same bytes, also when the run was interrupted and resumed.

    Parameters
    ----------
    pivot_folder : Path
        Checkpoint folder of the pivot.
    shards : sequence of Path
        Fused shards; they carry the pivot's input ids.
    output : Path
        Written whole or not at all: safetensors in the pivot's stored dtype, and the pivot's config, generation
        config, tokenizer and chat template.
    config : TrainingConfig
    checkpoint_folder : Path
        For resumable checkpoints of this run alone; the newest one is resumed from.
    lm_weight : float, optional
        Overrides `config.lm_weight`; 1.0 is plain fine-tuning on the same rows.
    device : torch.device, optional
        Default: the first CUDA device, else the processor.
    progress : callable
        Called with (optimizer steps done, in all).
    on_window : callable
        Called with each TrainingWindow.

    Raises
    ------
    TrainingError
        If the loss diverges, nothing can be trained on, or the checkpoint folder belongs to another run.
    TrainingInterruptedError
        After SIGTERM, once a checkpoint is written.
    ShardError, ModelError
        If a shard or the pivot cannot be used.

    Notes
    -----
    Eq. 5, arXiv 2402.16107.
    """
    device = device or default_device()
    lm_weight = config.lm_weight if lm_weight is None else lm_weight
    data = FusedShards(shards)
    with _accelerator(config, device) as accelerator, torch.random.fork_rng(devices=_cuda(device)):
        torch.manual_seed(config.seed)
        pivot = ResolvedModel(pivot_folder.name, pivot_folder, digest="", tokenizer_digest="")
        language_model = load_model(pivot, device, torch.float32)
        model = target_model(language_model, config, lm_weight, _tail(config, data))
        optimizer = torch.optim.AdamW(
            decay_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.adam_betas, fused=True
        )
        model, optimizer = accelerator.prepare(model, optimizer)
        plan = BatchPlan(
            data.index,
            epochs=config.epochs,
            batch_dialogues=config.batch_dialogues,
            micro_batch_tokens=config.micro_batch_tokens,
            seed=config.seed,
            processes=accelerator.num_processes,
        )
        checkpoints = TrainingCheckpoints(
            checkpoint_folder, _identity(config, lm_weight, pivot_folder, data), config.keep_checkpoints
        )
        first_step, state = checkpoints.restore(model, optimizer)
        history = TrainingHistory(config.window_steps)
        history.restore(state)

        def checkpoint(step: int) -> None:
            checkpoints.save(step, model, optimizer, history.to_json(), writes=accelerator.is_main_process)

        with Interruption() as interruption, _prefetched(data, plan, first_step, accelerator, pivot_folder) as batches:
            clock = Stopwatch()
            for step, batch in enumerate(batches, start=first_step + 1):
                waited = clock.lap()
                rate = learning_rate(step, plan.steps, config)
                losses = _accumulate_gradients(accelerator, model, batch)
                norm = float(accelerator.clip_grad_norm_(model.parameters(), config.max_gradient_norm))
                history.stop_if_diverging(step, losses[0], norm, batch.dialogue_ids, config.stop_loss_factor)
                _apply_gradients(optimizer, rate)
                result = StepResult(
                    *losses[1:], rate, norm, batch.positions, batch.tokens, waited + clock.lap(), waited
                )
                window = history.add(step, result, accelerator.device, is_last=step == plan.steps)
                if window is not None and accelerator.is_main_process:
                    on_window(window)
                progress(step, plan.steps)
                if step < plan.steps and (step % config.checkpoint_steps == 0 or interruption.requested):
                    checkpoint(step)
                interruption.stop_if_requested(step, plan.steps)
        weights = get_model_state_dict(model, options=WHOLE)
        if accelerator.is_main_process:
            prefix = "language_model."
            plain = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            write_target(language_model, plain, pivot_folder, output)
        accelerator.wait_for_everyone()
        return history.report(plan.steps)


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the rate of one optimizer step: a linear rise, then half a cosine down to zero.

    Parameters
    ----------
    step : int
        From 1 to `steps`.
    steps : int
    config : TrainingConfig
    """
    rising = math.ceil(config.warmup_share * steps)
    if step <= rising:
        return config.learning_rate * step / rising
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising - 1) / max(steps - rising, 1)))


def _accumulate_gradients(accelerator: Accelerator, model: torch.nn.Module, batch: Batch) -> tuple[float, float, float]:
    # Processes are averaged over, so each divides by its share of the count: the sum is over the count, once.
    normaliser = batch.positions / accelerator.num_processes
    sums = torch.zeros(3, device=accelerator.device)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        is_last = number == len(batch.micro_batches)
        with nullcontext() if is_last else accelerator.no_sync(model):
            parts = model(micro_batch.to(accelerator.device), normaliser)
            accelerator.backward(parts[0])
        sums += torch.stack([part.detach().float() for part in parts])
    loss, lm_loss, fusion_loss = accelerator.reduce(sums, reduction="mean").tolist()
    return loss, lm_loss, fusion_loss


def _apply_gradients(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def _prefetched(
    data: FusedShards, plan: BatchPlan, first_step: int, accelerator: Accelerator, pivot_folder: Path
) -> Iterator[Iterator[Batch]]:
    # The next step's dialogues are read while the device computes.
    pad = AutoConfig.from_pretrained(pivot_folder, local_files_only=True).get_text_config().pad_token_id
    pad_token_id = pad if isinstance(pad, int) and pad >= 0 else 0
    with ThreadPoolExecutor(max_workers=1) as reader:

        def batches() -> Iterator[Batch]:
            ahead = None
            for step in range(first_step, plan.steps):
                current = ahead or reader.submit(load_batch, data, plan, step, accelerator.process_index, pad_token_id)
                if step + 1 < plan.steps:
                    ahead = reader.submit(load_batch, data, plan, step + 1, accelerator.process_index, pad_token_id)
                yield current.result()

        yield batches()


@contextmanager
def _accelerator(config: TrainingConfig, device: torch.device) -> Iterator[Accelerator]:
    # Accelerate keeps one state per process and refuses another precision in it; a run leaves none behind.
    AcceleratorState._reset_state()
    precision = compute_dtype(config.precision, device)
    try:
        yield Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision is torch.bfloat16 else "no")
    finally:
        AcceleratorState._reset_state()


def _tail(config: TrainingConfig, data: FusedShards) -> Tail:
    if data.truncations == {"sampled"}:
        return "weights"
    if "sampled" in data.truncations:
        raise TrainingError(
            "Some fused shards hold sampled distributions and some the most probable tokens; train on one kind."
        )
    return config.tail


def _identity(config: TrainingConfig, lm_weight: float, pivot_folder: Path, data: FusedShards) -> dict:
    index = hashlib.sha256(data.index.tobytes()).hexdigest()
    return config.model_dump(mode="json") | {"lm_weight": lm_weight, "dialogues": index}


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
