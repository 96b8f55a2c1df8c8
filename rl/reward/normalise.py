"""From a reward model's raw scores to rewards in (0, 1)."""

import math
from collections.abc import Sequence

from farside.configs.schema import ScoreNorm
from farside.rl.advantage import SumFloats

SMALLEST_SPREAD = 1e-6


def squashed(raw: float, center: float, scale: float, clip: float | None = None) -> float:
    """sigmoid((raw - center) / scale), the standardised score clipped to -clip .. clip before."""
    z = (raw - center) / scale
    if clip is not None:
        z = max(-clip, min(clip, z))
    return 0.5 * (1 + math.tanh(z / 2))  # the sigmoid, without overflow


class ScoreNormaliser:
    """Standardises by held-out answers, by the samples at hand, or by all samples so far.

    center, scale: of held-out answers. total: sums over the ranks that hold other samples. seen: what ``record`` gave
    before; (count, mean, squared distances from it) of all samples so far.
    """

    def __init__(
        self,
        kind: ScoreNorm,
        center: float,
        scale: float,
        clip: float | None,
        total: SumFloats,
        seen: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.kind, self.center, self.scale, self.clip, self.total = kind, center, scale, clip, total
        self.count, self.mean, self.squares = seen

    def __call__(self, raws: Sequence[float]) -> list[float]:
        """Rewards of this rank's samples. Collective, unless held-out answers are the measure."""
        if self.kind is not ScoreNorm.held_out:
            self._see(raws)
            self.center = self.mean
            self.scale = max(math.sqrt(self.squares / max(self.count, 1.0)), SMALLEST_SPREAD)
        return [squashed(raw, self.center, self.scale, self.clip) for raw in raws]

    def _see(self, raws: Sequence[float]) -> None:
        """Adds the samples by the update of Chan, Golub and LeVeque (1979), which loses no digits; a batch's own
        statistics are those of nothing and the batch."""
        if self.kind is ScoreNorm.batch:
            self.count = self.mean = self.squares = 0.0
        count, sum_ = self.total([float(len(raws)), math.fsum(raws)])
        mean = sum_ / count
        (squares,) = self.total([math.fsum((raw - mean) ** 2 for raw in raws)])
        together, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * self.count * count / together
        self.mean += apart * count / together
        self.count = together

    def record(self) -> list[float]:
        """For a checkpoint."""
        return [self.count, self.mean, self.squares]
