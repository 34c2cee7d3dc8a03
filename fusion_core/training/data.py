"""Fused shards to the tensors of micro-batches.

Legend: B dialogues of one micro-batch, T tokens of the longest, N response positions, K entries of a distribution.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion_core.batching import pad_right
from fusion_core.errors import ShardError, TrainingError
from fusion_core.packing import pack
from fusion_core.shards import Shard, read_shard
from fusion_core.training.plan import SHARDS_IN_WINDOW, BatchPlan

# A batch at an epoch's border may draw on two windows.
SHARDS_IN_MEMORY = 2 * SHARDS_IN_WINDOW


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass.

    Parameters
    ----------
    input_ids : int64 [B, T]
        Padded on the right. A causal model needs no mask for that: nothing attends to what comes later. Or packed:
        one row with one dialogue after the other.
    position_ids : int64 [1, T] or None
        Of packed dialogues: each counts from 0, which is how models tell where one ends and the next begins.
    rows : int64 [N]
        Response positions in the flattened [B * T].
    labels : int64 [N]
    token_ids : int32 [N, K]
    log_probs : float32 [N, K]
    """

    input_ids: Tensor
    position_ids: Tensor | None
    rows: Tensor
    labels: Tensor
    token_ids: Tensor
    log_probs: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same on a device."""

        def moved(part: Tensor) -> Tensor:
            return part.to(device, non_blocking=True)

        return MicroBatch(
            moved(self.input_ids),
            None if self.position_ids is None else moved(self.position_ids),
            moved(self.rows),
            moved(self.labels),
            moved(self.token_ids),
            moved(self.log_probs),
        )


@dataclass(frozen=True)
class Batch:
    """What one process computes of one optimizer step.

    Parameters
    ----------
    micro_batches : tuple of MicroBatch
        As many as every other process has.
    dialogue_ids : tuple of str
        Dialogues of the whole step, over all processes.
    positions : int
        Positions with loss of the whole step, over all processes.
    tokens : int
        Tokens without padding of the whole step, over all processes.
    squared_tokens : int
        Sum of the squared lengths of its dialogues, which attention costs.
    """

    micro_batches: tuple[MicroBatch, ...]
    dialogue_ids: tuple[str, ...]
    positions: int
    tokens: int
    squared_tokens: int


class FusedShards:
    """Fused shards on disk, of which a few are in memory; dialogues without positions are left out.

    Raises
    ------
    ShardError
        If a shard does not carry training inputs.
    TrainingError
        If no dialogue has a position to train on.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._cache: OrderedDict[int, Shard] = OrderedDict()
        index: list[np.ndarray] = []
        self.truncations: set[str] = set()
        made_of: list[str] = []
        dialogues_of: list[str] = []
        for number in range(len(self._paths)):
            shard = self._shard(number)
            lengths = np.diff(_inputs(shard, self._paths[number]).input_splits)
            positions = np.diff(shard.top_k.row_splits)
            dialogues = np.flatnonzero(positions)
            numbers = np.full(len(dialogues), number)
            index.append(np.stack([numbers, dialogues, lengths[dialogues], positions[dialogues]], 1))
            self.truncations.add(shard.metadata.truncation)
            made_of.append(f"{shard.metadata.model_digest} {shard.metadata.dataset_digest}")
            dialogues_of.append(shard.metadata.dataset_digest)
        # int64 [dialogues, 4]: shard, place in it, tokens, positions.
        self.index = np.concatenate(index) if index else np.zeros((0, 4), np.int64)
        if not len(self.index):
            raise TrainingError(
                f"None of the {len(self._paths)} fused shards has a response position; check that the dialogues have "
                "assistant turns and that the pivot's encoder does not refuse them."
            )

        self._made_of = "\n".join(made_of)
        self._dialogues_of = "\n".join(dialogues_of)

    def digest(self, *, with_distributions: bool = True) -> str:
        """Return a digest of what the shards were made of and of their dialogues' sizes; or of the dialogues alone."""
        made_of = self._made_of if with_distributions else self._dialogues_of
        return hashlib.sha256(made_of.encode() + self.index.tobytes()).hexdigest()

    def dialogue_id(self, row: int) -> str:
        """Return the id of the dialogue in one row of the index."""
        number, place = self.index[row, :2]
        return self._shard(int(number)).dialogue_ids[place]

    def micro_batch(self, rows: Sequence[int], pad_token_id: int, *, packed: bool = False) -> MicroBatch:
        """Return the tensors of the dialogues in these rows of the index."""
        parts = [self._read(row) for row in rows]
        position_ids = None
        if packed:
            input_ids, position_ids, starts = pack([part.input_ids for part in parts])
        else:
            input_ids = torch.from_numpy(pad_right([part.input_ids for part in parts], fill=pad_token_id))
            starts = np.arange(len(parts)) * input_ids.shape[1]
        widest = max(part.token_ids.shape[1] for part in parts)
        flat = [start + part.positions.astype(np.int64) for start, part in zip(starts, parts, strict=True)]
        return MicroBatch(
            input_ids,
            position_ids,
            torch.from_numpy(np.concatenate(flat)),
            torch.from_numpy(np.concatenate([part.input_ids[part.positions + 1] for part in parts]).astype(np.int64)),
            torch.from_numpy(np.concatenate([_widened(part.token_ids, widest, -1) for part in parts])),
            torch.from_numpy(np.concatenate([_widened(part.log_probs, widest, -np.inf) for part in parts])),
        )

    def empty_micro_batch(self, pad_token_id: int) -> MicroBatch:
        """Return one token without loss, for a process that has fewer micro-batches than another."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return MicroBatch(
            torch.tensor([[pad_token_id]]),
            None,
            nothing,
            nothing,
            torch.zeros(0, 1, dtype=torch.int32),
            torch.zeros(0, 1),
        )

    def _read(self, row: int) -> _Example:
        number, place, *_ = (int(value) for value in self.index[row])
        shard = self._shard(number)
        inputs = _inputs(shard, self._paths[number])
        tokens = slice(int(inputs.input_splits[place]), int(inputs.input_splits[place + 1]))
        positions = slice(int(shard.top_k.row_splits[place]), int(shard.top_k.row_splits[place + 1]))
        return _Example(
            inputs.input_ids[tokens],
            inputs.response_positions[positions],
            shard.top_k.token_ids[positions],
            shard.top_k.log_probs[positions],
        )

    def _shard(self, number: int) -> Shard:
        if number not in self._cache:
            self._cache[number] = read_shard(self._paths[number])
            while len(self._cache) > SHARDS_IN_MEMORY:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]


def load_batch(shards: FusedShards, plan: BatchPlan, step: int, process: int, pad_token_id: int) -> Batch:
    """Read what one process computes of one optimizer step."""
    rows = plan.rows(step)
    groups = plan.micro_batches(step, process)
    return Batch(
        tuple(
            shards.micro_batch(group, pad_token_id, packed=plan.packing)
            if group
            else shards.empty_micro_batch(pad_token_id)
            for group in groups
        ),
        tuple(shards.dialogue_id(int(row)) for row in rows),
        int(shards.index[rows, 3].sum()),
        int(shards.index[rows, 2].sum()),
        int((shards.index[rows, 2] ** 2).sum()),
    )


@dataclass(frozen=True)
class _Example:
    input_ids: np.ndarray
    positions: np.ndarray
    token_ids: np.ndarray
    log_probs: np.ndarray


def _inputs(shard: Shard, path: Path):
    if shard.inputs is None:
        raise ShardError(
            f"{path} carries no training inputs, so it is a shard of extracted distributions; train on fused shards."
        )
    return shard.inputs


def _widened(entries_NK: np.ndarray, width: int, pad: float) -> np.ndarray:
    return np.pad(entries_NK, ((0, 0), (0, width - entries_NK.shape[1])), constant_values=pad)
