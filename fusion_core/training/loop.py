"""The training loop, as one process runs it.

Every optimizer step takes `batch_dialogues` dialogues, or `batch_tokens` tokens, in micro-batches of a token budget.
Losses are sums over positions, divided once by the positions of the whole batch, so that neither micro-batches nor
processes change the result beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fusion_core.config import TrainingConfig
from fusion_core.devices import compute_dtype
from fusion_core.errors import TrainingError, TrainingInterruptedError
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import read_model_config
from fusion_core.training.adapters import merge_adapters
from fusion_core.training.checkpoints import WHOLE, TrainingCheckpoints
from fusion_core.training.data import Batch, FusedShards, MicroBatch, load_batch
from fusion_core.training.devices import accelerated
from fusion_core.training.flops import FlopsMeter
from fusion_core.training.interruption import Interruption
from fusion_core.training.job import TrainingJob, TrainingListener
from fusion_core.training.metrics import (
    StepResult,
    Stopwatch,
    TrainingHistory,
    TrainingReport,
    peak_memory_bytes,
)
from fusion_core.training.model import decay_groups, tied_names, write_target
from fusion_core.training.plan import BatchPlan
from fusion_core.training.setup import build_model

# They change time, memory or what is told, and weights by rounding at most: a run may go on with others.
SPEED_SETTINGS = (
    "micro_batch_tokens",
    "packing",
    "processes",
    "strategy",
    "gradient_checkpointing",
    "checkpoint_steps",
    "keep_checkpoints",
    "checkpoints_in_store",
    "window_steps",
    "stop_loss_factor",
)


def train_in_this_process(job: TrainingJob, listener: TrainingListener, interruption: Interruption) -> TrainingReport:
    """Train as this process, alone or as one of several that an outside launch made; see `train_target`."""
    config, device = job.config, job.device
    data = FusedShards(job.shards)
    with accelerated(config, device) as accelerator, torch.random.fork_rng(devices=_cuda(device)):
        pivot = job.pivot()
        language_model, model = build_model(job, pivot, data, accelerator)
        optimizer = accelerator.prepare(
            torch.optim.AdamW(
                decay_groups(model, config.weight_decay),
                lr=config.learning_rate,
                betas=config.adam_betas,
                fused=True,
            )
        )
        plan = BatchPlan(
            data.index,
            epochs=config.epochs,
            batch_dialogues=config.batch_dialogues,
            batch_tokens=config.batch_tokens,
            micro_batch_tokens=config.micro_batch_tokens,
            seed=config.seed,
            processes=accelerator.num_processes,
            packing=config.packing,
        )
        dtype = compute_dtype(config.precision, accelerator.device)
        is_first = accelerator.is_main_process
        checkpoints = TrainingCheckpoints(
            job.checkpoint_folder, _identity(job, dtype, pivot, data), config.keep_checkpoints
        )
        first_step, state = checkpoints.restore(model, optimizer, is_first=is_first)
        flops = FlopsMeter(language_model.config, accelerator.device, dtype, accelerator.num_processes)
        history = TrainingHistory(config.window_steps)
        history.restore(state)
        with interruption.noted(), _prefetched(data, plan, first_step, accelerator, pivot) as batches:
            clock = Stopwatch()
            for step, batch in enumerate(batches, start=first_step + 1):
                waited = clock.lap()
                rate = learning_rate(step, plan.steps, config)
                # Draws such as dropout's depend on the step alone, so that a resumed run repeats them.
                torch.manual_seed(_step_seed(config.seed, step, accelerator.process_index))
                losses, stop = _accumulate_gradients(accelerator, model, batch, interruption)
                norm = _clip(accelerator, model, config.max_gradient_norm)
                history.stop_if_diverging(step, losses[0], norm, batch.dialogue_ids, config.stop_loss_factor)
                _apply_gradients(optimizer, rate)
                spent = waited + clock.lap()
                share = flops.share(batch.tokens, batch.squared_tokens, batch.positions, spent)
                result = StepResult(*losses[1:], rate, norm, batch.positions, batch.tokens, spent, waited, share)
                window = history.add(step, result, accelerator.device, is_last=step == plan.steps)
                if is_first:
                    if window is not None:
                        listener.on_window(window)
                    listener.progress(step, plan.steps)
                stop = stop and step < plan.steps
                if stop or (step % config.checkpoint_steps == 0 and step < plan.steps):
                    written = checkpoints.save(step, model, optimizer, history.to_json(), is_first=is_first)
                    if written is not None:
                        listener.on_checkpoint(written)
                if stop:
                    raise TrainingInterruptedError(
                        f"Training was asked to stop (SIGTERM) and wrote a checkpoint after step {step} of "
                        f"{plan.steps}; the same command goes on from there."
                    )
        _write(accelerator, model, language_model, job)
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


def _accumulate_gradients(
    accelerator: Accelerator, model: nn.Module, batch: Batch, interruption: Interruption
) -> tuple[tuple[float, float, float], bool]:
    # Processes are averaged over, so each divides by its share of the count: the sum is over the count, once.
    normaliser = batch.positions / accelerator.num_processes
    sums = torch.zeros(4, device=accelerator.device)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        is_last = number == len(batch.micro_batches)
        with (
            nullcontext() if is_last else accelerator.no_sync(model),
            _memory_error_explained(micro_batch, accelerator.device),
        ):
            with accelerator.autocast():
                parts = model(micro_batch.to(accelerator.device), normaliser)
            accelerator.backward(parts[0])
        sums[:3] += torch.stack([part.detach().float() for part in parts])
    # A signal may reach one process alone; all must stop after the same step.
    sums[3] = float(interruption.requested)
    loss, lm_loss, fusion_loss, stops = accelerator.reduce(sums, reduction="mean").tolist()
    return (loss, lm_loss, fusion_loss), stops > 0


@contextmanager
def _memory_error_explained(batch: MicroBatch, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # The processor's allocator raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        dialogues, tokens = batch.input_ids.shape
        raise TrainingError(
            f"Memory ran out in a forward pass of {dialogues} dialogues of {tokens} tokens, with a peak of "
            f"{peak_memory_bytes(device) / 1e9:.1f} GB: lower `micro_batch_tokens`, set `gradient_checkpointing: true` "
            "or shorten dialogues with `max_length_tokens`."
        ) from error


def _clip(accelerator: Accelerator, model: nn.Module, largest: float) -> float:
    norm = accelerator.clip_grad_norm_(model.parameters(), largest)
    # Of sharded gradients it may come as a sum that is still spread over the processes.
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _apply_gradients(optimizer: AcceleratedOptimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def _prefetched(
    data: FusedShards, plan: BatchPlan, first_step: int, accelerator: Accelerator, pivot: ResolvedModel
) -> Iterator[Iterator[Batch]]:
    # The next step's dialogues are read while the device computes.
    pad = read_model_config(pivot).get_text_config().pad_token_id
    pad_token_id = pad if isinstance(pad, int) and pad >= 0 else 0
    with ThreadPoolExecutor(max_workers=1) as reader:

        def start(step: int) -> Future[Batch]:
            return reader.submit(load_batch, data, plan, step, accelerator.process_index, pad_token_id)

        def batches() -> Iterator[Batch]:
            ahead = start(first_step)
            for step in range(first_step, plan.steps):
                batch = ahead.result()
                if step + 1 < plan.steps:
                    ahead = start(step + 1)
                yield batch

        yield batches()


def _write(accelerator: Accelerator, model: nn.Module, language_model: PreTrainedModel, job: TrainingJob) -> None:
    weights: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    if accelerator.is_main_process:
        plain = {name.removeprefix("language_model."): tensor for name, tensor in weights.items()}
        # Gathered from several processes, tied weights have become two tensors; they must be written as one.
        plain |= {name: plain[first] for name, first in tied_names(language_model).items()}
        if job.config.lora is not None:
            plain = merge_adapters(plain, job.config.lora)
        write_target(language_model, plain, job.pivot_folder, job.output)
    accelerator.wait_for_everyone()


def _identity(job: TrainingJob, dtype: torch.dtype, pivot: ResolvedModel, data: FusedShards) -> dict:
    settings = job.config.model_dump(mode="json", exclude=set(SPEED_SETTINGS))
    # With lambda = 1 the fused distributions carry no weight: such a run may go on beside another source's.
    shards = data.digest(with_distributions=job.lm_weight < 1.0)
    # What 'auto' stands for, not the word.
    precision = str(dtype)
    return settings | {
        "lm_weight": job.lm_weight, "precision": precision, "pivot": pivot.digest, "fused shards": shards
    }  # fmt: skip


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
