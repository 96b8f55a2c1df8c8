"""DAPO (arXiv 2503.14476, eq. 8): GRPO with a mean over tokens and a higher upper clip (0.28, section 3.1).

J = 1/Σ|o_i| Σ_i Σ_t min(rho A_i, clip(rho, 1 - low, 1 + high) A_i). Its other parts are keys of their own, free to go
with any algorithm: ``rl.sampling_rounds`` (dynamic sampling, section 3.2), ``rl.overlong_cache`` (eq. 13).
"""

from farside.configs.schema import RlConfig
from farside.rl.advantage import group_normalised
from farside.rl.algorithms.base import Algorithm, Normalisation, clip_bounds
from farside.rl.loss import clipped_objective


def dapo(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: seen.spread(group_normalised(seen.outcomes_PG, seen.valid_PG)),
        clipped_objective(*clip_bounds(config, high=0.28), config.clip_dual),
        Normalisation.token_mean,
    )
