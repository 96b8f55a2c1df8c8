"""Answers that go round in circles: the same few tokens over and over, found while they are being decoded.

Shapes: B rows, P the longest period looked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from farside.configs.schema import RepetitionConfig

NO_LOOPS = RepetitionConfig(longest_period=0)
"""Nothing is looked for."""


def ends_in_loop(tokens: Sequence[int], config: RepetitionConfig) -> bool:
    """Whether the last tokens are one stretch of at most ``longest_period`` tokens, ``repeats`` times over and at least
    ``least_tokens`` in all."""
    for period in range(1, config.longest_period + 1):
        span = max(period * config.repeats, config.least_tokens)
        if len(tokens) >= span and all(tokens[-at] == tokens[-at - period] for at in range(1, span - period + 1)):
            return True
    return False


class LoopDetector:
    """``ends_in_loop`` of many answers, told one token of each at a time: P comparisons a token, whatever the length.

    On the CPU; without a period to look for it does nothing.
    """

    def __init__(self, config: RepetitionConfig) -> None:
        self.looks = config.longest_period > 0
        periods_P = torch.arange(1, config.longest_period + 1)
        self.needed_P = (periods_P * config.repeats).clamp(min=config.least_tokens) - periods_P
        self.span = int((self.needed_P + periods_P).max()) if self.looks else 0
        self.recent_BP = torch.empty(0, config.longest_period, dtype=torch.long)
        """The last tokens, the newest first; -1: there was none."""
        self.alike_BP = torch.empty(0, config.longest_period, dtype=torch.long)
        """How many of the last tokens in a row equal the one a period before."""

    def enter(self, answers: Sequence[Sequence[int]]) -> None:
        """More rows behind those that are there, with what there is of their answers."""
        if not self.looks:
            return
        recent_BP, alike_BP = self.recent_BP, self.alike_BP
        for answer in answers:
            self.recent_BP = torch.full((1, recent_BP.shape[1]), -1)
            self.alike_BP = torch.zeros_like(self.recent_BP)
            for token in answer[-self.span :]:
                self.step(torch.tensor([token]))
            recent_BP = torch.cat([recent_BP, self.recent_BP])
            alike_BP = torch.cat([alike_BP, self.alike_BP])
        self.recent_BP, self.alike_BP = recent_BP, alike_BP

    def step(self, token_B: Tensor) -> list[bool]:
        """Which rows end in a loop now that each has this token more."""
        if not self.looks:
            return [False] * len(token_B)
        token_B = token_B.cpu()
        self.alike_BP = torch.where(self.recent_BP == token_B[:, None], self.alike_BP + 1, 0)
        self.recent_BP = torch.cat([token_B[:, None], self.recent_BP[:, :-1]], 1)
        return (self.alike_BP >= self.needed_P).any(1).tolist()

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these, in this order."""
        if self.looks:
            self.recent_BP, self.alike_BP = self.recent_BP[list(rows)], self.alike_BP[list(rows)]
