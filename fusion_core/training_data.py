"""Fused shards to micro-batches: which dialogues each optimizer step takes, and their tensors.

Legend: B dialogues of one micro-batch, T tokens of the longest, N response positions, K entries of a distribution.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion_core.errors import ShardError, TrainingError
from fusion_core.shards import Shard, read_shard

SHARDS_IN_WINDOW = 2
# A batch at an epoch's border may draw on two windows.
SHARDS_IN_MEMORY = 2 * SHARDS_IN_WINDOW


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass.

    Parameters
    ----------
    input_ids : int64 [B, T]
        Padded on the right. A causal model needs no mask for that: nothing attends to what comes later.
    rows : int64 [N]
        Response positions in the flattened [B * T].
    labels : int64 [N]
    token_ids : int32 [N, K]
    log_probs : float32 [N, K]
    """

    input_ids: Tensor
    rows: Tensor
    labels: Tensor
    token_ids: Tensor
    log_probs: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same on a device."""
        return MicroBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


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
        for number in range(len(self._paths)):
            shard = self._shard(number)
            lengths = np.diff(_inputs(shard, self._paths[number]).input_splits)
            positions = np.diff(shard.top_k.row_splits)
            dialogues = np.flatnonzero(positions)
            numbers = np.full(len(dialogues), number)
            index.append(np.stack([numbers, dialogues, lengths[dialogues], positions[dialogues]], 1))
            self.truncations.add(shard.metadata.truncation)
            made_of.append(f"{shard.metadata.model_digest} {shard.metadata.dataset_digest}")
        # int64 [dialogues, 4]: shard, place in it, tokens, positions.
        self.index = np.concatenate(index) if index else np.zeros((0, 4), np.int64)
        if not len(self.index):
            raise TrainingError(
                f"None of the {len(self._paths)} fused shards has a response position; check that the dialogues have "
                "assistant turns and that the pivot's encoder does not refuse them."
            )

        self._made_of = "\n".join(made_of)

    def digest(self) -> str:
        """Return a digest of what the shards were made of and of their dialogues' sizes."""
        return hashlib.sha256(self._made_of.encode() + self.index.tobytes()).hexdigest()

    def dialogue_id(self, row: int) -> str:
        """Return the id of the dialogue in one row of the index."""
        number, place = self.index[row, :2]
        return self._shard(int(number)).dialogue_ids[place]

    def micro_batch(self, rows: Sequence[int], pad_token_id: int) -> MicroBatch:
        """Return the tensors of the dialogues in these rows of the index."""
        parts = [self._read(row) for row in rows]
        longest = max(len(part.input_ids) for part in parts)
        widest = max(part.token_ids.shape[1] for part in parts)
        input_ids = np.full((len(parts), longest), pad_token_id, np.int64)
        for place, part in enumerate(parts):
            input_ids[place, : len(part.input_ids)] = part.input_ids
        flat = [place * longest + part.positions.astype(np.int64) for place, part in enumerate(parts)]
        return MicroBatch(
            torch.from_numpy(input_ids),
            torch.from_numpy(np.concatenate(flat)),
            torch.from_numpy(np.concatenate([part.input_ids[part.positions + 1] for part in parts]).astype(np.int64)),
            torch.from_numpy(np.concatenate([_widened(part.token_ids, widest, -1) for part in parts])),
            torch.from_numpy(np.concatenate([_widened(part.log_probs, widest, -np.inf) for part in parts])),
        )

    def empty_micro_batch(self, pad_token_id: int) -> MicroBatch:
        """Return one token without loss, for a process that has fewer micro-batches than another."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return MicroBatch(
            torch.tensor([[pad_token_id]]), nothing, nothing, torch.zeros(0, 1, dtype=torch.int32), torch.zeros(0, 1)
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


class BatchPlan:
    """Which dialogues each optimizer step takes, on which process and in which micro-batch.

    Every process computes the same plan from the index alone. Dialogues run on from one epoch to the next without a
    short batch in between; only the last step may be short.

    Parameters
    ----------
    index : int64 [dialogues, 4]
        Shard, place in it, tokens and positions of every dialogue, in the shards' order.
    epochs, batch_dialogues, micro_batch_tokens, seed : int
    processes : int
    """

    def __init__(
        self,
        index: np.ndarray,
        *,
        epochs: int,
        batch_dialogues: int,
        micro_batch_tokens: int,
        seed: int,
        processes: int = 1,
    ) -> None:
        self._index = index
        self._batch_dialogues = batch_dialogues
        self._micro_batch_tokens = micro_batch_tokens
        self._processes = processes
        self._drawn = epochs * len(index)
        self.steps = -(-self._drawn // batch_dialogues)
        self._epoch = lru_cache(maxsize=2)(lambda epoch: shuffled_by_window(index[:, 0], seed, epoch))

    def rows(self, step: int) -> np.ndarray:
        """Return the rows of the index that a step takes, over all processes."""
        start = step * self._batch_dialogues
        draws = np.arange(start, min(start + self._batch_dialogues, self._drawn))
        return np.array([self._epoch(int(draw) // len(self._index))[draw % len(self._index)] for draw in draws])

    def micro_batches(self, step: int, process: int) -> list[list[int]]:
        """Return the rows of each micro-batch of one process; every process gets equally many lists."""
        rows = self.rows(step)
        longest_first = rows[np.argsort(-self._index[rows, 2], kind="stable")]
        shares = [
            self._within_budget(longest_first[start :: self._processes].tolist()) for start in range(self._processes)
        ]
        most = max(len(share) for share in shares)
        return shares[process] + [[] for _ in range(most - len(shares[process]))]

    def _within_budget(self, longest_first: list[int]) -> list[list[int]]:
        groups: list[list[int]] = []
        for row in longest_first:
            tokens_each = int(self._index[groups[-1][0], 2]) if groups else 0
            if groups and (len(groups[-1]) + 1) * tokens_each <= self._micro_batch_tokens:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups


def load_batch(shards: FusedShards, plan: BatchPlan, step: int, process: int, pad_token_id: int) -> Batch:
    """Read what one process computes of one optimizer step."""
    rows = plan.rows(step)
    groups = plan.micro_batches(step, process)
    return Batch(
        tuple(
            shards.micro_batch(group, pad_token_id) if group else shards.empty_micro_batch(pad_token_id)
            for group in groups
        ),
        tuple(shards.dialogue_id(int(row)) for row in rows),
        int(shards.index[rows, 3].sum()),
        int(shards.index[rows, 2].sum()),
        int((shards.index[rows, 2] ** 2).sum()),
    )


def shuffled_by_window(shard_of_row: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return all rows of the index in an order drawn for this epoch, which reads a few shards at a time.

    Parameters
    ----------
    shard_of_row : int64 [dialogues]
    seed, epoch : int

    Returns
    -------
    int64 [dialogues]
        A permutation: shards are shuffled, then the dialogues of each few consecutive ones together.
    """
    draws = np.random.default_rng([seed, epoch])
    shards = draws.permutation(np.unique(shard_of_row))
    windows = [shards[start : start + SHARDS_IN_WINDOW] for start in range(0, len(shards), SHARDS_IN_WINDOW)]
    return np.concatenate([draws.permutation(np.flatnonzero(np.isin(shard_of_row, window))) for window in windows])


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
