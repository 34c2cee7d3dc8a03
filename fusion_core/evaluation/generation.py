"""Answers of a model to conversations: what every benchmark that lets a model speak asks for.

Sampling is from the whole distribution at the given temperature: no top-k, top-p or repetition penalty, whatever a
checkpoint's generation config says, so that the same settings mean the same for every model and every engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fusion_core.progress import Advance, ignore_progress

# {"role": "system" | "user" | "assistant", "content": str}; a conversation ends with a user's turn.
Message = Mapping[str, str]
Conversation = Sequence[Message]

# Below this a temperature means taking the most probable token.
GREEDY_BELOW = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Parameters
    ----------
    temperature : float
        0 takes the most probable token.
    max_new_tokens : int
        A response is cut off after as many.
    seed : int
        Equal seeds draw equal responses on the same machine and engine.
    """

    temperature: float = 0.0
    max_new_tokens: int = 1024
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether the seed has no part in the response."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Generation:
    """One response.

    Parameters
    ----------
    text : str
        Without special tokens, stripped.
    finished : bool
        Whether the model ended its turn itself, rather than being cut off.
    prompt_tokens, new_tokens : int
        Tokens read and written, the end of the turn among the latter.
    """

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int


class Generator(Protocol):
    """Something that answers conversations: a checkpoint in this process, or a server."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        progress: Advance = ignore_progress,
    ) -> list[Generation]:
        """Return one response for each conversation, in their order."""
