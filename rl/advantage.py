"""Advantages from rewards. P prompts, G samples per prompt."""

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the standard deviation, as in verl, slime, SkyRL, ROLL and NeMo-RL; TRL has 1e-4, OpenRLHF
1e-9."""


def group_normalised(rewards_PG: Tensor, valid_PG: Tensor, eps: float = EPS) -> Tensor:
    """GRPO's advantage (r - mean) / (std + eps) within each prompt's group (DeepSeekMath, section 4.1.2).

    std is the unbiased one (divides by n - 1), as in every implementation known to us; the paper does not
    say. Only valid samples count in mean and std, and whatever their reward holds (NaN too), invalid ones
    get 0. So do all samples of a group with fewer than two valid ones or with equal rewards: exactly 0, no
    rounding residue.

    Args:
        rewards_PG: [P, G] floating.
        valid_PG: [P, G] bool.

    Returns:
        [P, G], dtype of the rewards, no gradient.
    """
    if rewards_PG.shape != valid_PG.shape or rewards_PG.dim() != 2:
        raise ValueError(f"rewards {tuple(rewards_PG.shape)}, valid {tuple(valid_PG.shape)}: expected two [P, G]")
    if valid_PG.dtype != torch.bool:
        raise ValueError(f"valid must be bool, is {valid_PG.dtype}")
    rewards_PG = rewards_PG.detach()
    zero = torch.zeros_like(rewards_PG)
    count_P1 = valid_PG.sum(1, keepdim=True).to(rewards_PG.dtype)
    kept_PG = torch.where(valid_PG, rewards_PG, zero)
    mean_P1 = kept_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = torch.where(valid_PG, rewards_PG - mean_P1, zero)
    std_P1 = (centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    lowest_P1 = rewards_PG.masked_fill(~valid_PG, torch.inf).amin(1, keepdim=True)
    highest_P1 = rewards_PG.masked_fill(~valid_PG, -torch.inf).amax(1, keepdim=True)
    tells_P1 = (count_P1 >= 2) & (highest_P1 > lowest_P1)
    return torch.where(tells_P1, centred_PG / (std_P1 + eps), zero)
