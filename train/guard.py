"""Bad steps: a loss or gradient that is no number, or far above those before, must not reach the weights.

The verdict is reached on the device, between the gradient's norm and the update, from numbers that are alike on every
rank: all skip the same step and nobody waits for the host. The host reads it where it reads the metrics. After several
bad steps in a row the loop goes back to a checkpoint and leaves those batches out (PaLM, arXiv 2204.02311, 5.1).
The threshold is OLMo-core's SkipStepOptimizer's: mean + sigmas · deviation over the last good steps. Unlike there, bad
steps stay out of the window (one NaN would close it for as long as it lasts) and checkpoints hold the window.
"""

import math
import statistics
from collections import deque
from typing import Any

import torch
from torch import Tensor

from farside.configs.schema import GuardConfig
from farside.train.engine.base import Judge


class Guard:
    """Judges steps. ``streak`` is the number of bad ones in a row."""

    def __init__(self, config: GuardConfig, record: dict[str, Any] | None = None) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.norms: deque[float] = deque(maxlen=config.window)
        self.streak = 0
        if record is not None:
            self.losses.extend(record["losses"])
            self.norms.extend(record["grad_norms"])
            self.streak = record["streak"]

    def judge(self, loss: Tensor) -> Judge:
        """For a step whose loss is ``loss``, alike on every rank."""
        highest_loss, highest_norm = self._limit(self.losses), self._limit(self.norms)

        def bad(grad_norm: Tensor) -> Tensor:
            # not (a and b) rather than (not a or not b): comparisons with NaN are false
            return ~((loss <= highest_loss) & (grad_norm <= highest_norm) & loss.isfinite() & grad_norm.isfinite())

        return bad

    def _limit(self, values: deque[float]) -> float:
        if not self.config.sigmas or len(values) < self.config.window:
            return math.inf
        return statistics.fmean(values) + self.config.sigmas * statistics.pstdev(values)

    def settle(self, step: dict[str, float], batch: int) -> dict[str, Any]:
        """Takes note of a step and returns its numbers as they are told: without ``skipped`` for a good one, else with
        why ("nan", "spike") and which batch of the stage it was."""
        told: dict[str, Any] = dict(step)
        if told.pop("skipped"):
            self.streak += 1
            finite = math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"])
            return {**told, "skipped": "spike" if finite else "nan", "batch": batch}
        self.streak = 0
        if self.config.sigmas:
            self.losses.append(step["loss"])
            self.norms.append(step["grad_norm"])
        return told

    @property
    def gives_up(self) -> bool:
        """Whether to go back to a checkpoint."""
        return 0 < self.config.patience <= self.streak

    def forget(self) -> None:
        """Another stage has other losses."""
        self.losses.clear()
        self.norms.clear()
        self.streak = 0

    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"losses": list(self.losses), "grad_norms": list(self.norms), "streak": self.streak}


def read(scalars: dict[str, Tensor]) -> dict[str, float]:
    """Device scalars on the host, with one wait."""
    return dict(zip(scalars, torch.stack([scalar.detach().double() for scalar in scalars.values()]).tolist()))
