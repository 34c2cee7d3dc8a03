"""What a training run tells about itself: windows of steps, the report, and when to stop."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fusion_core.errors import TrainingError
from fusion_core.resident_memory import peak_resident_bytes

STEPS_BEFORE_JUMPS_COUNT = 20
SMOOTHING = 0.9


@dataclass(frozen=True)
class TrainingWindow:
    """Means over a few consecutive optimizer steps.

    Parameters
    ----------
    step : int
        Optimizer steps done at its end.
    lm_loss, fusion_loss : float
        Mean over the window's positions, in nats per token.
    learning_rate, gradient_norm : float
        Of its last step; the norm before clipping.
    positions, tokens : int
        Positions with loss, and tokens without padding, in the window.
    tokens_per_second : float
    data_wait_share : float
        Share of the window's time in which the device waited for data.
    memory_bytes : int
        Peak so far: allocated on the device, or resident in the process on a CPU.
    flops_share : float or None
        Share of the devices' peak FLOPs that useful work came to (MFU); None where the peak is not known.
    """

    step: int
    lm_loss: float
    fusion_loss: float
    learning_rate: float
    gradient_norm: float
    positions: int
    tokens: int
    tokens_per_second: float
    data_wait_share: float
    memory_bytes: int
    flops_share: float | None

    def as_metrics(self) -> dict[str, float]:
        """Return what is logged against the step."""
        values = asdict(self)
        return {name: float(value) for name, value in values.items() if name != "step" and value is not None}

    def as_metadata(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingReport:
    """What a whole run did, restarts included.

    Parameters
    ----------
    steps, tokens, positions : int
        Optimizer steps, tokens without padding and positions with loss, over all epochs.
    seconds : float
        Time in the training loop.
    first_lm_loss, last_lm_loss, first_fusion_loss, last_fusion_loss : float
        Of the first and last window.
    peak_memory_bytes : int
    windows : tuple of TrainingWindow
        The loss curve.
    """

    steps: int
    tokens: int
    positions: int
    seconds: float
    first_lm_loss: float
    last_lm_loss: float
    first_fusion_loss: float
    last_fusion_loss: float
    peak_memory_bytes: int
    windows: tuple[TrainingWindow, ...]

    def as_metadata(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"windows": [asdict(window) for window in self.windows]}


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: losses in nats per token, the norm before clipping, and where its time went."""

    lm_loss: float
    fusion_loss: float
    learning_rate: float
    gradient_norm: float
    positions: int
    tokens: int
    seconds: float
    data_wait_seconds: float
    flops_share: float | None


@dataclass
class TrainingHistory:
    """Windows so far; survives a restart through its JSON form."""

    window_steps: int
    windows: list[TrainingWindow] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    positions: int = 0
    smoothed_loss: float = 0.0
    _open: list[StepResult] = field(default_factory=list)

    def add(self, step: int, result: StepResult, device: torch.device, *, is_last: bool) -> TrainingWindow | None:
        """Take in a step; return the window that it completes."""
        self.seconds += result.seconds
        self.tokens += result.tokens
        self.positions += result.positions
        self._open.append(result)
        if len(self._open) < self.window_steps and not is_last:
            return None
        window = _window(step, self._open, device)
        self._open = []
        self.windows.append(window)
        return window

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, an unfinished window included."""
        return {
            "windows": [asdict(window) for window in self.windows],
            "open": [asdict(result) for result in self._open],
            "seconds": self.seconds,
            "tokens": self.tokens,
            "positions": self.positions,
            "smoothed_loss": self.smoothed_loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `to_json` returned; an empty dict changes nothing."""
        if not state:
            return
        self.windows = [TrainingWindow(**window) for window in state["windows"]]
        self._open = [StepResult(**result) for result in state["open"]]
        self.seconds, self.smoothed_loss = state["seconds"], state["smoothed_loss"]
        self.tokens, self.positions = state["tokens"], state["positions"]

    def report(self, steps: int) -> TrainingReport:
        """Return the report of a finished run."""
        first, last = self.windows[0], self.windows[-1]
        return TrainingReport(
            steps,
            self.tokens,
            self.positions,
            self.seconds,
            first.lm_loss,
            last.lm_loss,
            first.fusion_loss,
            last.fusion_loss,
            max(window.memory_bytes for window in self.windows),
            tuple(self.windows),
        )

    def stop_if_diverging(
        self, step: int, loss: float, gradient_norm: float, dialogue_ids: tuple[str, ...], jump_factor: float
    ) -> None:
        """Raise before a step whose loss or gradient is broken changes the weights.

        Raises
        ------
        TrainingError
            If loss or gradient norm is not finite, or the loss is `jump_factor` times its running mean.
        """
        named = ", ".join(dialogue_ids[:8]) + (f" and {len(dialogue_ids) - 8} more" if len(dialogue_ids) > 8 else "")
        where = f"at step {step} (loss {loss:.4g}, gradient norm {gradient_norm:.4g}, dialogues {named})"
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise TrainingError(
                f"Training stopped {where}: the loss or its gradient is not finite; look at these dialogues' fused "
                "rows, lower `learning_rate`, or set `precision: float32`."
            )
        if step > STEPS_BEFORE_JUMPS_COUNT and loss > jump_factor * self.smoothed_loss:
            raise TrainingError(
                f"Training stopped {where}: the loss is more than {jump_factor:g} times its running mean "
                f"{self.smoothed_loss:.4g}; look at these dialogues, lower `learning_rate`, or raise "
                "`stop_loss_factor`."
            )
        self.smoothed_loss = loss if step == 1 else SMOOTHING * self.smoothed_loss + (1 - SMOOTHING) * loss


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._read = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._read = now - self._read, now
        return seconds


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak allocated on a CUDA device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def _window(step: int, results: list[StepResult], device: torch.device) -> TrainingWindow:
    positions = sum(result.positions for result in results)
    tokens = sum(result.tokens for result in results)
    seconds = sum(result.seconds for result in results)
    shares = [result.flops_share for result in results]
    return TrainingWindow(
        step,
        sum(result.lm_loss * result.positions for result in results) / positions,
        sum(result.fusion_loss * result.positions for result in results) / positions,
        results[-1].learning_rate,
        results[-1].gradient_norm,
        positions,
        tokens,
        tokens / seconds,
        sum(result.data_wait_seconds for result in results) / seconds,
        peak_memory_bytes(device),
        None if None in shares else sum(share or 0.0 for share in shares) / len(shares),
    )
