"""GRPO: group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300, eq. 3 and section 4.1.2).

J = 1/G Σ_i 1/|o_i| Σ_t min(rho A_i, clip(rho) A_i), A_i = (r_i - mean) / std. Its KL term is ``rl.kl``.
"""

from farside.configs.schema import RlConfig
from farside.rl.advantage import group_normalised
from farside.rl.algorithms.base import Algorithm, Normalisation, clip_bounds
from farside.rl.loss import clipped_objective


def grpo(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: seen.spread(group_normalised(seen.outcomes_PG, seen.valid_PG)),
        clipped_objective(*clip_bounds(config), config.clip_dual),
        Normalisation.sample_mean,
    )
