"""What is held against the gates of a promotion, and what they decide.

Every difference is told as a gain: how much better the candidate is, in the metric's own unit, whichever way the metric
runs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.record import Record


class Measure(Record):
    """One score that somebody else computed: a mean with its 95 % interval.

    Parameters
    ----------
    mean : float
    low, high : float or None
        None where the interval is not known.
    scale : str
        What makes two scores comparable, such as the judge and the questions; only equal scales compare.
    higher_is_better : bool or None
        None where neither is, so that the score passes no gate.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    scale: str = ""
    higher_is_better: bool | None = True


class Contender(Record):
    """A model with everything it was scored on.

    Parameters
    ----------
    name : str
        Such as 'version 3' or 'pivot small'.
    held_out : HeldOutScores or None
        Its held-out scores, dialogue by dialogue.
    measures : dict
        Every other metric by its name, such as ``mt_bench/overall``.
    """

    name: str
    held_out: HeldOutScores | None = None
    measures: dict[str, Measure] = Field(default_factory=dict)


class GateResult(Record):
    """What one gate saw.

    Parameters
    ----------
    gate : str
        must_beat, must_not_drop_more_than or required.
    metric, rival : str
        What was compared, and with whom; no rival for a required metric.
    passed : bool
    reason : str
        One sentence.
    candidate, other : float or None
        The metric of either.
    gain, low, high : float or None
        How much better the candidate is, and the interval of it.
    threshold : float or None
        Margin to beat, or largest loss.
    confidence : float or None
        Share of the interval; None where means alone are compared.
    dialogues : int or None
        Held-out dialogues behind it.
    """

    gate: Literal["must_beat", "must_not_drop_more_than", "required"]
    metric: str
    rival: str = ""
    passed: bool
    reason: str
    candidate: float | None = None
    other: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    confidence: float | None = None
    dialogues: int | None = None

    def cells(self) -> tuple[str, ...]:
        """Return gate, metric, rival, both scores, gain, interval, threshold and outcome as a table shows them."""
        interval = "" if self.low is None else f"{self.low:+.4f} to {self.high:+.4f} ({self.confidence:.0%})"
        threshold = self.threshold if self.gate == "must_beat" or self.threshold is None else -self.threshold
        return (
            self.gate.replace("_", " "),
            self.metric,
            self.rival,
            _number(self.candidate, ".4f"),
            _number(self.other, ".4f"),
            _number(self.gain, "+.4f"),
            interval,
            "" if threshold is None else f"{'>' if self.gate == 'must_beat' else '>='} {threshold:g}",
            "passed" if self.passed else "NOT PASSED",
        )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


class Decision(Record):
    """What the gates say of a candidate; ``champion`` is None where there is none yet."""

    candidate: str
    champion: str | None
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def reason(self) -> str:
        """Why it failed, or that it passed, in one line."""
        failed = [gate.reason for gate in self.gates if not gate.passed]
        return "; ".join(failed) if failed else f"{self.candidate} passed {len(self.gates)} of {len(self.gates)} gates"

    def markdown(self) -> str:
        """Return every number as a Markdown table, with the outcome above it."""
        against = f"against {self.champion}" if self.champion else "with no champion yet"
        lines = [
            f"**{self.candidate} {'passes' if self.passed else 'does not pass'} its gates**, {against}.",
            "",
            "| outcome | gate | metric | against | candidate | other | better by | interval | needed |",
            "|---|---|---|---|---:|---:|---:|---|---:|",
        ]
        for gate in self.gates:
            *numbers, outcome = gate.cells()
            lines.append(f"| {' | '.join((outcome, *numbers))} |")
        return "\n".join([*lines, "", *(f"- {gate.reason}" for gate in self.gates)]) + "\n"
