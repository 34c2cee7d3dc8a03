"""Training a target: the pivot, fine-tuned on fused distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fusion_core.config import TrainingConfig
from fusion_core.devices import default_device
from fusion_core.progress import Advance, ignore_progress
from fusion_core.training.devices import check_number_of_processes
from fusion_core.training.interruption import Interruption
from fusion_core.training.job import TrainingJob, TrainingListener
from fusion_core.training.loop import train_in_this_process
from fusion_core.training.metrics import TrainingReport, TrainingWindow
from fusion_core.training.processes import launched_from_outside, train_in_child_processes
from fusion_core.training.relay import CheckpointRelay

__all__ = ["TrainingReport", "TrainingWindow", "train_target"]


def train_target(
    pivot_folder: Path,
    shards: Sequence[Path],
    output: Path,
    config: TrainingConfig,
    *,
    checkpoint_folder: Path,
    lm_weight: float | None = None,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    progress: Advance = ignore_progress,
    on_window: Callable[[TrainingWindow], None] = lambda window: None,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> TrainingReport:
    """Fine-tune the pivot on fused shards and write the target as a plain Hugging Face checkpoint folder.

    Weights and optimizer are float32, products as `config.precision` says. On a CPU the same inputs, settings and
    number of threads give the same bytes, also when the run was interrupted and resumed.

    With a GPU or several processes the work is done in child processes, so that memory is given back and a crash is an
    error here; under an outside ``torchrun`` or ``accelerate launch`` every process calls this and takes its part.

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
    trust_remote_code : bool
        Run Python code that the pivot's folder carries; it is copied to `output` with everything else.
    progress : callable
        Called with (optimizer steps done, in all).
    on_window : callable
        Called with each TrainingWindow.
    on_checkpoint : callable, optional
        Called with the folder of each resumable checkpoint once it is whole, in another thread while the run goes on;
        of those that come faster than it returns some are left out, never the last.

    Raises
    ------
    TrainingError
        If the loss diverges, nothing can be trained on, the checkpoint folder belongs to another run, or the machine
        has too few devices for `config.processes`.
    TrainingInterruptedError
        After SIGTERM: once the step under way is finished and a checkpoint written, or at once where there is none.
    ShardError, ModelError
        If a shard or the pivot cannot be used.

    Notes
    -----
    Eq. 5, arXiv 2402.16107.
    """
    device = device or default_device()
    job = TrainingJob(
        pivot_folder,
        tuple(shards),
        output,
        config,
        checkpoint_folder,
        config.lm_weight if lm_weight is None else lm_weight,
        device,
        trust_remote_code,
    )
    with Interruption() as interruption, CheckpointRelay(on_checkpoint) as relay:
        listener = TrainingListener(progress, on_window, relay.offer)
        if launched_from_outside():
            return train_in_this_process(job, listener, interruption)
        check_number_of_processes(config.processes, device)
        in_children = device.type == "cuda" or config.processes > 1
        train = train_in_child_processes if in_children else train_in_this_process
        return train(job, listener, interruption)
