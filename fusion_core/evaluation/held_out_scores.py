"""What one model makes of held-out dialogues, label by label."""

from __future__ import annotations

import numpy as np

from fusion_core.record import Record


class DialogueScore(Record):
    """What one model makes of the responses of one dialogue, label by label.

    Parameters
    ----------
    dialogue_id, domain : str
    response_bytes : tuple of int
        UTF-8 length of every response of the whole dialogue, whether the model's cut reached it or not.
    ends : tuple of int
        Where each label ends in the dialogue's responses: bytes of the responses up to there, plus one for every end
        of turn up to there. The same place for every tokenizer; never decreasing.
    nats : tuple of float
        -log p(label) of each label.
    """

    dialogue_id: str
    domain: str
    response_bytes: tuple[int, ...]
    ends: tuple[int, ...]
    nats: tuple[float, ...]

    @property
    def turn_ends(self) -> np.ndarray:
        """Where the end of each turn lies, counted as in ``ends``."""
        return np.cumsum(np.asarray(self.response_bytes, dtype=np.int64) + 1)

    def bytes_at(self, end: int) -> int:
        """Return the response bytes up to a place given as in ``ends``."""
        return end - int(np.searchsorted(self.turn_ends, end, side="right"))

    def nats_at(self, end: int, turn_ends: np.ndarray) -> float:
        """Return the nats of the labels up to a place given as in ``ends``; of ends of turns, only of these."""
        ends = np.asarray(self.ends)
        counts = (ends <= end) & (~np.isin(ends, self.turn_ends) | np.isin(ends, turn_ends))
        return float(np.asarray(self.nats)[counts].sum())

    @property
    def bytes_covered(self) -> int:
        """Response bytes before the model's cut."""
        return self.bytes_at(self.ends[-1])


class HeldOutScores(Record):
    """All held-out scores of one model; ``refused`` gives the reason for each dialogue that it could not read."""

    model_name: str
    max_length_tokens: int
    dialogues: tuple[DialogueScore, ...]
    refused: dict[str, str]

    @property
    def nats_per_byte(self) -> float:
        """Nats per response byte over all that this model covered."""
        return _nats_per_byte(self.dialogues)

    @property
    def domains(self) -> dict[str, float]:
        """Nats per response byte of each domain."""
        names = sorted({score.domain for score in self.dialogues})
        return {name: _nats_per_byte([s for s in self.dialogues if s.domain == name]) for name in names}


def _nats_per_byte(dialogues: tuple[DialogueScore, ...] | list[DialogueScore]) -> float:
    covered = sum(score.bytes_covered for score in dialogues)
    return float(sum(sum(score.nats) for score in dialogues) / covered) if covered else float("nan")
