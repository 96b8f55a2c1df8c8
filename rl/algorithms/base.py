"""What makes an algorithm: advantages, an objective, a normalisation, and what it needs of the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from farside.configs.schema import RlConfig
from farside.rl.experience import Experience
from farside.rl.loss import Objective


class Normalisation(Enum):
    """What the sum of token losses is divided by, as weights of tokens over a global total. Invalid samples count
    nowhere."""

    sample_mean = "mean over samples of the mean over their tokens"
    token_mean = "mean over all tokens"
    constant_length = "mean over samples of the sum over their tokens / longest possible answer"

    def weights(self, lengths_N: Tensor, valid_N: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """(weight of each token of a sample [N], what the sample adds to the total [N]), in float64."""
        valid_N = valid_N.double()
        if self is Normalisation.sample_mean:
            return valid_N / lengths_N, valid_N
        if self is Normalisation.token_mean:
            return valid_N, valid_N * lengths_N
        return valid_N / longest, valid_N


@dataclass(frozen=True)
class Algorithm:
    """advantages: [N, T] in float64 from what was sampled. reset_optimizer: every iteration begins without moments."""

    advantages: Callable[[Experience], Tensor]
    objective: Objective
    normalisation: Normalisation
    reset_optimizer: bool = False


def clip_bounds(config: RlConfig, low: float = 0.2, high: float = 0.2) -> tuple[float, float]:
    """The configured bounds, else the algorithm's own."""
    return (
        low if config.clip_low is None else config.clip_low,
        high if config.clip_high is None else config.clip_high,
    )
