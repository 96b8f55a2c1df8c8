"""RLOO: REINFORCE with the mean of the group's other samples as baseline (Ahmadian et al., arXiv 2402.14740, eq. 8).

J = 1/G Σ_i A_i log pi(y_i), A_i = r_i - mean of the others: an answer is one action. The log-probability of the whole
sequence stands at each of its tokens, which weigh 1/|o_i|. Without a ratio it is meant for one update an iteration.
"""

from torch import Tensor

from farside.configs.schema import RlConfig
from farside.rl.advantage import leave_one_out
from farside.rl.algorithms.base import Algorithm, Normalisation
from farside.rl.loss import PolicyTokens


def reinforce(tokens: PolicyTokens) -> tuple[Tensor, dict[str, Tensor]]:
    return -tokens.advantages * tokens.sequences.sum(tokens.logprobs), {"ratio": tokens.log_ratio.detach().exp()}


def rloo(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: seen.spread(leave_one_out(seen.outcomes_PG, seen.valid_PG)),
        reinforce,
        Normalisation.sample_mean,
    )
