"""The model of a training run, made ready: loaded, checked, with adapters, on its devices."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator, init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fusion_core.errors import TrainingError
from fusion_core.losses.mixture import Tail
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_model, read_model_config
from fusion_core.training.adapters import add_adapters
from fusion_core.training.data import FusedShards
from fusion_core.training.devices import distributed, is_spread
from fusion_core.training.job import TrainingJob
from fusion_core.training.model import LossHead, TargetModel, check_packing, find_loss_head


def build_model(
    job: TrainingJob, pivot: ResolvedModel, data: FusedShards, accelerator: Accelerator
) -> tuple[PreTrainedModel, nn.Module]:
    """Return the pivot's language model, and the same ready to train: with the loss, and on this run's processes.

    Where weights are spread over processes, the first one alone reads them, into main memory, and hands them out block
    by block: the others never hold more than their share, one block and the embeddings.
    """
    config = job.config
    tail = _tail(job, data)
    spread = is_spread(config, accelerator)
    if spread and not accelerator.is_main_process:
        language_model, head = _without_weights(pivot), None
    else:
        device = torch.device("cpu") if spread else accelerator.device
        language_model = load_model(pivot, device, torch.float32)
        probe = data.micro_batch([0], pad_token_id=0).input_ids[0].to(device)
        head = find_loss_head(language_model, probe)
        if config.packing and len(data.index) > 1:
            both, second = data.micro_batch([0, 1], 0, packed=True), data.micro_batch([1], 0)
            check_packing(language_model, both.to(device), second.to(device))
    if spread:
        head = _sent_by_first_process(head)
    assert head is not None
    model = TargetModel(language_model, head, lm_weight=job.lm_weight, temperature=config.temperature, tail=tail)
    if config.lora is not None:
        with init_empty_weights() if spread and not accelerator.is_main_process else nullcontext():
            add_adapters(language_model, config.lora, config.seed)
    if config.gradient_checkpointing:
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return language_model, distributed(model.train(), accelerator, spread=spread)


def _tail(job: TrainingJob, data: FusedShards) -> Tail:
    if "sampled" not in data.truncations:
        return job.config.tail
    if data.truncations != {"sampled"}:
        raise TrainingError(
            "Some fused shards hold sampled distributions and some the most probable tokens; train on one kind."
        )
    if job.config.tail == "bucket":
        raise TrainingError("Sampled distributions have no tail, `tail: bucket` no meaning; remove it.")
    if job.config.temperature != 1.0:
        raise TrainingError("Sampled distributions have no temperature; remove `temperature` from the recipe.")
    return "weights"


def _without_weights(pivot: ResolvedModel) -> PreTrainedModel:
    # Buffers such as rotary frequencies are computed, parameters are on `meta`.
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            read_model_config(pivot), dtype=torch.float32, trust_remote_code=pivot.trust_remote_code
        )
    # Registering a tied weight a second time gave it a copy of its own.
    model.tie_weights()
    return model


def _sent_by_first_process(head: LossHead | None) -> LossHead:
    sent = [head]
    torch.distributed.broadcast_object_list(sent, src=0)
    assert sent[0] is not None
    return sent[0]
