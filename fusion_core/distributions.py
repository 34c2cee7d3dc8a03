"""Truncated next-token distributions as flat arrays.

Legend: N response positions, K entries per position, D dialogues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion_core.errors import ShardError


@dataclass(frozen=True)
class TopK:
    """The most probable next tokens at every response position of some dialogues.

    Parameters
    ----------
    token_ids : int32 [N, K]
        Token ids by descending probability; -1 pads rows with fewer entries.
    log_probs : float32 [N, K]
        Natural logarithms of probabilities, normalised over the full vocabulary at temperature 1, descending;
        -inf pads. ``1 - exp(log_probs).sum(1)`` is the mass outside the K entries.
    label_log_probs : float32 [N]
        log p(gold next token).
    row_splits : int64 [D + 1]
        Positions of dialogue d are ``row_splits[d]:row_splits[d + 1]``.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    label_log_probs: np.ndarray
    row_splits: np.ndarray

    def __post_init__(self) -> None:
        positions = len(self.label_log_probs)
        if self.token_ids.ndim != 2 or self.token_ids.shape != self.log_probs.shape:
            raise ShardError(
                f"token_ids {self.token_ids.shape} and log_probs {self.log_probs.shape} must both be [positions, k]."
            )
        if len(self.token_ids) != positions or int(self.row_splits[-1]) != positions or int(self.row_splits[0]) != 0:
            raise ShardError(
                f"token_ids have {len(self.token_ids)} rows, label_log_probs {positions}, row_splits run from "
                f"{int(self.row_splits[0])} to {int(self.row_splits[-1])}; all must cover the same positions."
            )

    @property
    def positions(self) -> int:
        """Number of response positions N."""
        return len(self.label_log_probs)

    @property
    def dialogues(self) -> int:
        """Number of dialogues D."""
        return len(self.row_splits) - 1

    @property
    def top_k(self) -> int:
        """Number of entries K a row has room for."""
        return self.token_ids.shape[1]

    def dialogue(self, index: int) -> TopK:
        """Return the distributions of one dialogue as a TopK of its own."""
        start, stop = int(self.row_splits[index]), int(self.row_splits[index + 1])
        return TopK(
            self.token_ids[start:stop],
            self.log_probs[start:stop],
            self.label_log_probs[start:stop],
            np.array([0, stop - start], dtype=np.int64),
        )
