"""REINFORCE++ (arXiv 2501.03262): PPO's clipped loss without a critic, advantages normalised over the batch.

R_t = Σ_{s >= t} gamma^(s - t) (r at the last token - beta KL_s), A = (R - mean) / std over all tokens of the batch;
mean over tokens. The baseline variant first subtracts the mean of the prompt's group. gamma is 1, as in the paper; beta
is ``rl.kl.weight`` with ``rl.kl.place=reward``.
"""

from torch import Tensor

from farside.configs.schema import RlConfig
from farside.rl.advantage import batch_normalised, group_centred, rewards_to_go
from farside.rl.algorithms.base import Algorithm, Normalisation, clip_bounds
from farside.rl.experience import Experience
from farside.rl.loss import clipped_objective


def returns(seen: Experience, outcomes_PG: Tensor) -> Tensor:
    return batch_normalised(rewards_to_go(seen.token_rewards(outcomes_PG), 1.0), seen.counted_NT, seen.total)


def reinforce_pp(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: returns(seen, seen.rewards_PG),
        clipped_objective(*clip_bounds(config), config.clip_dual),
        Normalisation.token_mean,
    )


def reinforce_pp_baseline(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: returns(seen, group_centred(seen.rewards_PG, seen.valid_PG)),
        clipped_objective(*clip_bounds(config), config.clip_dual),
        Normalisation.token_mean,
    )
