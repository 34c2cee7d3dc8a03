"""What one training run is given, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusion_core.config import ModelConfig, TrainingConfig
from fusion_core.models.identity import ResolvedModel, resolve_model
from fusion_core.progress import Advance, ignore_progress
from fusion_core.training.metrics import TrainingWindow


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides a training run; its fields are described in `train_target`."""

    pivot_folder: Path
    shards: tuple[Path, ...]
    output: Path
    config: TrainingConfig
    checkpoint_folder: Path
    lm_weight: float
    device: torch.device
    trust_remote_code: bool = False

    def pivot(self) -> ResolvedModel:
        """Return the pivot with its digest."""
        settings = {"name": "pivot", "path": self.pivot_folder, "trust_remote_code": self.trust_remote_code}
        return resolve_model(ModelConfig.model_validate(settings))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, with absolute paths."""
        return {
            "pivot_folder": str(self.pivot_folder.absolute()),
            "shards": [str(path.absolute()) for path in self.shards],
            "output": str(self.output.absolute()),
            "config": self.config.model_dump(mode="json"),
            "checkpoint_folder": str(self.checkpoint_folder.absolute()),
            "lm_weight": self.lm_weight,
            "device": self.device.type,
            "trust_remote_code": self.trust_remote_code,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TrainingJob:
        """Return the job that `to_json` described."""
        return cls(
            Path(fields["pivot_folder"]),
            tuple(Path(path) for path in fields["shards"]),
            Path(fields["output"]),
            TrainingConfig.model_validate(fields["config"]),
            Path(fields["checkpoint_folder"]),
            fields["lm_weight"],
            torch.device(fields["device"]),
            fields["trust_remote_code"],
        )


@dataclass(frozen=True)
class TrainingListener:
    """Who hears of a training run, in its first process alone.

    Parameters
    ----------
    progress : callable
        Called with (optimizer steps done, in all).
    on_window : callable
        Called with each TrainingWindow.
    on_checkpoint : callable
        Called with the folder of each checkpoint once it is whole; the run waits until it returns.
    """

    progress: Advance = ignore_progress
    on_window: Callable[[TrainingWindow], None] = lambda window: None
    on_checkpoint: Callable[[Path], None] = lambda folder: None
