"""What one iteration sampled on this rank, as tensors. P prompts, G samples each, N = P·G samples, T longest answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farside.configs.schema import ProcessCredit
from farside.rl.advantage import SumFloats, progress_advantages, step_advantages
from farside.rl.types import Completion, Score


@dataclass(frozen=True)
class Experience:
    """Rewards in float64; samples in the order of the completions, a prompt's together.

    kl_NT: what each token's distance from the reference costs, already weighted; 0 where rewards carry none.
    values_NT: the critic's expectation before each token, where there is one.
    step_rewards_NT: of steps, at their last tokens, where something judges them; NaN at other tokens.
    total: sums floats over the ranks that hold other samples.
    """

    rewards_PG: Tensor
    valid_PG: Tensor
    counted_NT: Tensor
    """Tokens of valid samples."""
    total: SumFloats
    kl_NT: Tensor
    values_NT: Tensor | None = None
    step_rewards_NT: Tensor | None = None

    @classmethod
    def of(
        cls, completions: Sequence[Completion], scores: Sequence[Score], samples_per_prompt: int, total: SumFloats
    ) -> "Experience":
        rewards_PG = torch.tensor([score.reward for score in scores], dtype=torch.float64).view(-1, samples_per_prompt)
        valid_N = torch.tensor([score.valid for score in scores])
        lengths_N = torch.tensor([len(item.tokens) for item in completions])
        counted_NT = (torch.arange(int(lengths_N.max())) < lengths_N[:, None]) & valid_N[:, None]
        kl_NT = torch.zeros(counted_NT.shape).double()
        steps_NT = step_rewards(scores, counted_NT)
        return cls(rewards_PG, valid_N.view_as(rewards_PG), counted_NT, total, kl_NT, step_rewards_NT=steps_NT)

    @property
    def outcomes_PG(self) -> Tensor:
        """A sample's whole reward."""
        return self.rewards_PG - self.kl_NT.sum(1).view_as(self.rewards_PG)

    def token_rewards(self, outcomes_PG: Tensor) -> Tensor:
        """[N, T]: a sample's outcome at its last token, less each token's distance from the reference."""
        later_NT = torch.zeros_like(self.counted_NT)
        later_NT[:, :-1] = self.counted_NT[:, 1:]
        last_NT = self.counted_NT & ~later_NT
        return torch.where(last_NT, outcomes_PG.reshape(-1, 1), 0.0) - torch.where(self.counted_NT, self.kl_NT, 0.0)

    def process_advantages(self, credit: ProcessCredit = ProcessCredit.to_go) -> Tensor:
        """[N, T]: what rewards of steps say of each token; 0 where nothing judges them."""
        if self.step_rewards_NT is None:
            return torch.zeros(self.counted_NT.shape).double()
        advantages = step_advantages if credit is ProcessCredit.to_go else progress_advantages
        return advantages(self.step_rewards_NT, self.rewards_PG.shape[1])

    def spread(self, advantages_PG: Tensor) -> Tensor:
        """[N, T]: a sample's advantage at each of its tokens."""
        return torch.where(self.counted_NT, advantages_PG.reshape(-1, 1), 0.0)


def step_rewards(scores: Sequence[Score], counted_NT: Tensor) -> Tensor | None:
    """[N, T] in float64: rewards of valid samples' steps at their last tokens, NaN elsewhere; None: without any."""
    if all(score.steps is None for score in scores):
        return None
    rewards_NT = torch.full(counted_NT.shape, torch.nan, dtype=torch.float64)
    for row, score in zip(rewards_NT, scores):
        for end, reward in score.steps or []:
            row[end] = reward
    return torch.where(counted_NT, rewards_NT, torch.nan)
