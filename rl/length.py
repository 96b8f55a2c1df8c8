"""Kimi k1.5's reward for short answers (arXiv 2501.12599, section 2.3.3). Shapes: P prompts, G samples per prompt."""

import torch
from torch import Tensor


def length_rewards(lengths_PG: Tensor, correct_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """[P, G] in float64: lambda = 0.5 - (length - shortest) / (longest - shortest) of one prompt's samples.

    A correct answer gets lambda, a wrong one min(0, lambda): it gains nothing by being short. 0 where all of a prompt's
    answers are of one length, and for what is not valid, which is no shortest and no longest either. Lengths are
    tokens, and are compared within one prompt only: a hard problem's long answers are not set against an easy one's.
    """
    lengths_PG = lengths_PG.double()
    shortest_P1 = lengths_PG.masked_fill(~valid_PG, torch.inf).amin(1, keepdim=True)
    longest_P1 = lengths_PG.masked_fill(~valid_PG, -torch.inf).amax(1, keepdim=True)
    spread_P1 = longest_P1 - shortest_P1
    lambda_PG = 0.5 - (lengths_PG - shortest_P1) / spread_P1
    rewards_PG = torch.where(correct_PG, lambda_PG, lambda_PG.clamp(max=0.0))
    return torch.where(valid_PG & (spread_P1 > 0), rewards_PG, 0.0)
