"""Resumable checkpoints of a training run: safetensors and JSON, whole or absent, kept by a limit.

They hold weights, optimizer moments and the history of the losses. Learning rate, order of the dialogues and random
draws are functions of the step and need no storing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from fusion_core.errors import TrainingError

STATE = "state.json"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# Frozen weights are the pivot's and need no storing.
WHOLE_TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class TrainingCheckpoints:
    """Folders ``step-00000200`` of one run.

    Parameters
    ----------
    folder : Path
        Holds this run's checkpoints and nothing else.
    identity : dict
        What decides the run's result, in plain JSON types; a checkpoint with another identity is refused.
    keep : int
        Checkpoints that stay; older ones are removed after a new one is whole.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int) -> None:
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))
        self._keep = keep

    def save(
        self, step: int, model: nn.Module, optimizer: Optimizer, history: dict[str, Any], *, is_first: bool
    ) -> Path | None:
        """Write the state after `step` optimizer steps; every process calls this, the first one writes.

        Returns
        -------
        Path or None
            The checkpoint's folder, in the process that wrote it.
        """
        weights: dict[str, Any] = get_model_state_dict(model, options=WHOLE_TRAINED)
        moments: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=WHOLE)
        if not is_first:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self._folder))
        try:
            save_file(_unshared(weights), building / "model.safetensors")
            flat = {f"{name}/{key}": value for name, entry in moments["state"].items() for key, value in entry.items()}
            save_file(_unshared(flat), building / "optimizer.safetensors")
            state = {"step": step, "identity": self._identity, "history": history}
            (building / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            final = self._folder / f"step-{step:08d}"
            shutil.rmtree(final, ignore_errors=True)
            building.rename(final)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        for old in checkpoints_in(self._folder)[: -self._keep]:
            shutil.rmtree(old)
        return final

    def restore(self, model: nn.Module, optimizer: Optimizer, *, is_first: bool) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint; return the steps done and the history, or ``(0, {})`` where there is none.

        Every process calls this; the first one reads and sends to the others, which may see no such folder.

        Raises
        ------
        TrainingError
            If the checkpoint belongs to another run or is broken.
        """
        state, weights, tensors = self._read_newest() if is_first else ({}, {}, {})
        several = torch.distributed.is_initialized()
        if several:
            sent = [state]
            torch.distributed.broadcast_object_list(sent, src=0)
            state = sent[0]
        if not state:
            return 0, {}
        # Not strict: frozen weights are not stored, and of tied ones only one name is, which the others follow.
        whole = StateDictOptions(full_state_dict=True, strict=False, broadcast_from_rank0=several)
        set_model_state_dict(model, weights, options=whole)
        moments: dict[str, Any] = {}
        for flat_name, tensor in tensors.items():
            name, key = flat_name.rsplit("/", 1)
            moments.setdefault(name, {})[key] = tensor
        # Settings such as betas come from the recipe; only the moments were stored.
        settings = get_optimizer_state_dict(model, optimizer)["param_groups"]
        set_optimizer_state_dict(model, optimizer, {"state": moments, "param_groups": settings}, options=whole)
        return int(state["step"]), state["history"]

    def _read_newest(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
        found = checkpoints_in(self._folder)
        if not found:
            return {}, {}, {}
        newest = found[-1]
        try:
            state = json.loads((newest / STATE).read_text(encoding="utf-8"))
            weights: dict[str, Any] = load_file(newest / "model.safetensors")
            tensors = load_file(newest / "optimizer.safetensors")
        except Exception as error:
            raise TrainingError(
                f"The training checkpoint {newest} cannot be read ({error}); delete that folder to go on from the one "
                "before it."
            ) from error
        differing = sorted(
            key
            for key in {*state["identity"], *self._identity}
            if state["identity"].get(key) != self._identity.get(key)
        )
        if differing:
            raise TrainingError(
                f"The training checkpoint {newest} belongs to a run with another {', '.join(differing)}; delete "
                f"{self._folder} to start anew, or give this run a checkpoint folder of its own."
            )
        return state, weights, tensors


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders of whole checkpoints, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Tied weights appear under two names; safetensors stores memory once, and loading ties them again.
    seen: dict[int, str] = {}
    kept = {}
    for name, tensor in sorted(tensors.items()):
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen[tensor.data_ptr()] = name
        kept[name] = tensor.contiguous()
    return kept
