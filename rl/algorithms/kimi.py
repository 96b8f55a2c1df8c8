"""Online mirror descent of Kimi k1.5 (arXiv 2501.12599, eq. 2 and 3) and Kimi K2 (arXiv 2507.20534, section 3.2.3).

With x = Σ_t log(pi / pi_i) of a whole answer, pi_i the policy at the iteration's start, and A = r - mean (or r - tau
log Z): k15 ascends 1/k Σ_j [A_j x_j - tau/2 x_j^2], eq. 3; k2 descends 1/K Σ_j (A_j - tau x_j)^2, whose gradient is
-2 tau times the same. Each iteration takes pi_i as its reference and begins with a fresh optimizer (k1.5, section
2.3.2). x stands at each of the sequence's tokens, which weigh 1/|o_i|.
"""

from torch import Tensor

from farside.configs.schema import MirrorBaseline, RlConfig
from farside.rl.advantage import group_centred, mirror_centred
from farside.rl.algorithms.base import Algorithm, Normalisation
from farside.rl.experience import Experience
from farside.rl.loss import Objective, PolicyTokens


def mirror_objective(tau: float, squared: bool) -> Objective:
    """Metric: ``drift``, the mean squared log-ratio of whole answers."""

    def objective(tokens: PolicyTokens) -> tuple[Tensor, dict[str, Tensor]]:
        x, a = tokens.sequences.sum(tokens.log_ratio), tokens.advantages
        loss = (a - tau * x).square() if squared else tau / 2 * x.square() - a * x
        return loss, {"drift": x.detach().square(), "ratio": tokens.log_ratio.detach().exp()}

    return objective


def k15(config: RlConfig) -> Algorithm:
    return _mirror(config, squared=False)


def k2(config: RlConfig) -> Algorithm:
    return _mirror(config, squared=True)


def _mirror(config: RlConfig, squared: bool) -> Algorithm:
    def advantages(seen: Experience) -> Tensor:
        if config.mirror_baseline is MirrorBaseline.mean:
            return seen.spread(group_centred(seen.outcomes_PG, seen.valid_PG))
        return seen.spread(mirror_centred(seen.outcomes_PG, seen.valid_PG, config.tau))

    return Algorithm(advantages, mirror_objective(config.tau, squared), Normalisation.sample_mean, reset_optimizer=True)
