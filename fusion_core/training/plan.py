"""Which dialogues each optimizer step takes, on which process and in which micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

SHARDS_IN_WINDOW = 2
# What a forward and backward pass costs beyond its tokens, in tokens: with less, a long tail of tiny passes.
PASS_TOKENS = 512


class BatchPlan:
    """Which dialogues each optimizer step takes, on which process and in which micro-batch.

    Every process computes the same plan from the index alone. Dialogues run on from one epoch to the next without a
    short batch in between; only the last step may be short.

    Parameters
    ----------
    index : int64 [dialogues, 4]
        Shard, place in it, tokens and positions of every dialogue, in the shards' order.
    epochs, micro_batch_tokens, seed : int
    batch_dialogues, batch_tokens : int or None
        One of them says where a step ends: after so many dialogues, or before the dialogue with which all its tokens
        (without padding) would be more than these. A longer dialogue is a step of its own.
    processes : int
    packing : bool
        Whether the dialogues of a micro-batch follow each other in one row instead of being padded to the longest.
    """

    def __init__(
        self,
        index: np.ndarray,
        *,
        epochs: int,
        micro_batch_tokens: int,
        seed: int,
        batch_dialogues: int | None = None,
        batch_tokens: int | None = None,
        processes: int = 1,
        packing: bool = False,
    ) -> None:
        self._index = index
        self._micro_batch_tokens = micro_batch_tokens
        self._processes = processes
        self.packing = packing
        self._epoch = lru_cache(maxsize=2)(lambda epoch: shuffled_by_window(index[:, 0], seed, epoch))
        drawn = epochs * len(index)
        if batch_tokens is None:
            starts = np.arange(0, drawn, batch_dialogues)
        else:
            starts = starts_by_tokens((index[self._epoch(epoch), 2] for epoch in range(epochs)), batch_tokens)
        # int64 [steps + 1]: the draws, counted over all epochs, between which each step lies.
        self._bounds = np.append(starts, drawn)
        self.steps = len(starts)

    def rows(self, step: int) -> np.ndarray:
        """Return the rows of the index that a step takes, over all processes."""
        draws = range(int(self._bounds[step]), int(self._bounds[step + 1]))
        return np.array([self._epoch(draw // len(self._index))[draw % len(self._index)] for draw in draws])

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
        lengths = self._index[longest_first, 2].tolist()
        group = packed_groups if self.packing else padded_groups
        return [[longest_first[place] for place in places] for places in group(lengths, self._micro_batch_tokens)]


def starts_by_tokens(lengths: Iterable[np.ndarray], batch_tokens: int) -> np.ndarray:
    """Return where each step begins when steps are filled with dialogues, in their order, up to some tokens.

    Parameters
    ----------
    lengths : iterable of int64 [dialogues]
        Tokens of the dialogues as they are drawn, epoch by epoch; steps run on from one epoch to the next.
    batch_tokens : int
        Most tokens of a step; a longer dialogue is a step of its own.

    Returns
    -------
    int64 [steps]
        Draws, counted over all epochs.
    """
    starts, filled, draw = [0], 0, 0
    for epoch in lengths:
        for length in epoch.tolist():
            if filled and filled + length > batch_tokens:
                starts.append(draw)
                filled = 0
            filled += length
            draw += 1
    return np.array(starts)


def padded_groups(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut dialogues into micro-batches that compute least, padding and a pass's own cost included.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each dialogue, falling.
    budget : int
        Tokens of a micro-batch with its padding; a longer dialogue is a micro-batch of its own.

    Returns
    -------
    list of list of int
        Indices into `lengths`.
    """
    cost, first = [0], [0]
    for stop in range(1, len(lengths) + 1):
        choices = [
            (cost[start] + (stop - start) * lengths[start] + PASS_TOKENS, start)
            for start in range(stop)
            if stop - start == 1 or (stop - start) * lengths[start] <= budget
        ]
        best = min(choices)
        cost.append(best[0])
        first.append(best[1])
    groups: list[list[int]] = []
    stop = len(lengths)
    while stop:
        groups.append(list(range(first[stop], stop)))
        stop = first[stop]
    return groups[::-1]


def packed_groups(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put each dialogue, the longest first, into the first micro-batch that has room for it.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each dialogue, falling.
    budget : int
        Tokens of a micro-batch; a longer dialogue is a micro-batch of its own.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for place, length in enumerate(lengths):
        fits = next((number for number, left in enumerate(room) if length <= left), None)
        if fits is None:
            groups.append([place])
            room.append(budget - length)
        else:
            groups[fits].append(place)
            room[fits] -= length
    return groups


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
    # Rows by shard once, and not by a look at all rows for every window: both grow with the data.
    rows = np.argsort(shard_of_row, kind="stable")
    numbers, starts = np.unique(shard_of_row[rows], return_index=True)
    of_shard = np.split(rows, starts[1:])
    shards = draws.permutation(len(numbers))
    windows = [shards[start : start + SHARDS_IN_WINDOW] for start in range(0, len(shards), SHARDS_IN_WINDOW)]
    return np.concatenate(
        [draws.permutation(np.sort(np.concatenate([of_shard[shard] for shard in window]))) for window in windows]
    )
