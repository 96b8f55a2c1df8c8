"""Dr.GRPO: GRPO without what biases it to length and to easy or hard questions (arXiv 2503.20783, section 3.2).

J = 1/G Σ_i 1/L Σ_t min(rho A_i, clip(rho) A_i), A_i = r_i - mean, with the constant L the longest possible answer.
"""

from farside.configs.schema import RlConfig
from farside.rl.advantage import group_centred
from farside.rl.algorithms.base import Algorithm, Normalisation, clip_bounds
from farside.rl.loss import clipped_objective


def dr_grpo(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: seen.spread(group_centred(seen.outcomes_PG, seen.valid_PG)),
        clipped_objective(*clip_bounds(config), config.clip_dual),
        Normalisation.constant_length,
    )
