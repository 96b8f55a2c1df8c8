"""GSPO: one ratio a sequence (arXiv 2507.18071, eq. 5 and 7).

J = 1/G Σ_i min(s_i A_i, clip(s_i) A_i), s_i = exp(1/|o_i| Σ_t log rho_t); A as in GRPO. s_i stands at each of the
sequence's tokens, which weigh 1/|o_i|. Its ratios stay near 1: clip 3e-4 and 4e-4 (section 5.1).
"""

from farside.configs.schema import RlConfig
from farside.rl.advantage import group_normalised
from farside.rl.algorithms.base import Algorithm, Normalisation, clip_bounds
from farside.rl.loss import clipped_objective


def gspo(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: seen.spread(group_normalised(seen.outcomes_PG, seen.valid_PG)),
        clipped_objective(*clip_bounds(config, 3e-4, 4e-4), config.clip_dual, whole=True),
        Normalisation.sample_mean,
    )
