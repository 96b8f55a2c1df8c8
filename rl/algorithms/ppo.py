"""PPO with a critic: generalised advantage estimation and the clipped value loss (arXiv 1506.02438, 1707.06347).

J = 1/Σ|o_i| Σ_i Σ_t min(rho A_t, clip(rho) A_t), A of GAE, normalised over the batch. A token's reward is the answer's
at its last token, less the distance from the reference (``rl.kl.place=reward``). The critic is ``farside.rl.critic``.
Shapes: N samples, T tokens; B rows, S positions.
"""

import torch
from torch import Tensor

from farside.configs.schema import RlConfig
from farside.data.batch import Batch
from farside.rl.advantage import batch_normalised
from farside.rl.algorithms.base import Algorithm, Normalisation, clip_bounds
from farside.rl.experience import Experience
from farside.rl.loss import clipped_objective
from farside.train.loss import LossFn, WeightedSum
from farside.train.model.heads import TokenOutputs


def ppo(config: RlConfig) -> Algorithm:
    return Algorithm(
        lambda seen: batch_normalised(estimates(seen, config)[0], seen.counted_NT, seen.total),
        clipped_objective(*clip_bounds(config), config.clip_dual),
        Normalisation.token_mean,
    )


def estimates(seen: Experience, config: RlConfig) -> tuple[Tensor, Tensor]:
    """(advantages, returns) [N, T] of what was sampled, by ``gae``."""
    assert seen.values_NT is not None
    rewards_NT = seen.token_rewards(seen.rewards_PG)
    return gae(rewards_NT, seen.values_NT, seen.counted_NT, config.gamma, config.gae_lambda)


def gae(rewards_NT: Tensor, values_NT: Tensor, counted_NT: Tensor, gamma: float, decay: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns) [N, T], 0 where not counted; counted tokens of a sample follow one another.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma decay A_{t+1}, V and A 0 past the end; return A + V.
    values_NT: what the critic expects before the token is drawn.
    """
    values_NT = torch.where(counted_NT, values_NT, 0.0)
    advantages_NT = torch.zeros_like(values_NT)
    next_value_N = next_advantage_N = torch.zeros_like(values_NT[:, 0])
    for t in reversed(range(values_NT.shape[1])):
        delta_N = rewards_NT[:, t] + gamma * next_value_N - values_NT[:, t]
        advantage_N = torch.where(counted_NT[:, t], delta_N + gamma * decay * next_advantage_N, 0.0)
        advantages_NT[:, t] = advantage_N
        next_value_N, next_advantage_N = values_NT[:, t], advantage_N
    return advantages_NT, advantages_NT + values_NT


def value_loss(clip: float) -> LossFn:
    """0.5 max((V - R)^2, (V clipped to within ``clip`` of the old V - R)^2) per token, as in PPO's first code.

    Extras [B, S]: returns, old_values. Metric: ``value_clip_share``.
    """

    def loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
        assert outputs.values is not None
        counted = batch.weights != 0
        values = torch.where(counted, outputs.values, 0.0)
        old, returns = (torch.where(counted, batch.extras[name], 0.0).detach() for name in ("old_values", "returns"))
        bounded = old + (values - old).clamp(-clip, clip)
        free, held = (values - returns).square(), (bounded - returns).square()
        metrics = {"value_clip_share": (batch.weights * (held > free)).sum()}
        return WeightedSum((batch.weights * torch.maximum(free, held) / 2).sum(), metrics)

    return loss
