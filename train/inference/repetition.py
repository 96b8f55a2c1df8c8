"""Answers that go round in circles: the same few tokens over and over, found while they are being decoded.

Shapes: B rows, P the longest period looked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from farside.configs.schema import RepetitionConfig


def ends_in_loop(tokens: Sequence[int], config: RepetitionConfig) -> bool:
    """Whether the last tokens are one stretch of at most ``longest_period`` tokens, ``repeats`` times over and at least
    ``least_tokens`` in all."""
    for period in range(1, config.longest_period + 1):
        span = max(period * config.repeats, config.least_tokens)
        if len(tokens) >= span and all(tokens[-at] == tokens[-at - period] for at in range(1, span - period + 1)):
            return True
    return False


class LoopDetector:
    """``ends_in_loop`` of many rows, told one token of each at a time: P comparisons a token, whatever the length."""

    def __init__(self, config: RepetitionConfig) -> None:
        periods_P = torch.arange(1, config.longest_period + 1)
        self.needed_P = (periods_P * config.repeats).clamp(min=config.least_tokens) - periods_P
        self.recent_BP = torch.empty(0, config.longest_period, dtype=torch.long)
        """The last tokens, the newest first; -1: there was none."""
        self.alike_BP = torch.empty(0, config.longest_period, dtype=torch.long)
        """How many of the last tokens in a row equal the one a period before."""

    def enter(self, rows: int) -> None:
        """So many more rows, without tokens yet, behind those that are there."""
        new_BP = torch.full((rows, self.recent_BP.shape[1]), -1)
        self.recent_BP = torch.cat([self.recent_BP, new_BP])
        self.alike_BP = torch.cat([self.alike_BP, torch.zeros_like(new_BP)])

    def step(self, token_B: Tensor) -> Tensor:
        """[B] bool: which rows end in a loop now that each has this token more. token_B: on the CPU."""
        self.alike_BP = torch.where(self.recent_BP == token_B[:, None], self.alike_BP + 1, 0)
        self.recent_BP = torch.cat([token_B[:, None], self.recent_BP[:, :-1]], 1)
        return (self.alike_BP >= self.needed_P).any(1)

    def select(self, rows: Tensor) -> None:
        """Keeps these, in this order."""
        self.recent_BP, self.alike_BP = self.recent_BP[rows], self.alike_BP[rows]
