"""What extraction reads, and what it tells of its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Encoded(Protocol):
    """What extraction needs of an encoded dialogue."""

    @property
    def dialogue_id(self) -> str:
        """Content hash."""

    @property
    def input_ids(self) -> np.ndarray:
        """Token ids, int32 [T]."""

    @property
    def response_positions(self) -> np.ndarray:
        """Indices whose next token is part of a response, int32 [N]."""


@dataclass(frozen=True)
class ExtractionStatistics:
    """What one shard's extraction took.

    Parameters
    ----------
    positions : int
        Response positions read.
    tokens : int
        Tokens of the dialogues.
    padding_share : float
        Share of the tokens in forward passes that was padding.
    batch_tokens : int
        The token budget that held; below the recipe's where memory ran out.
    seconds : float
    own_logits : bool
        The model's head was not understood and its own logits were taken.
    """

    positions: int
    tokens: int
    padding_share: float
    batch_tokens: int
    seconds: float
    own_logits: bool
