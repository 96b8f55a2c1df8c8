"""The process reward model: at the end of every step, how probably all is right up to there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.data.batch import Batch
from farside.rl.batches import padded_row, row_size
from farside.rl.reward.model import Opinion, head_values
from farside.rl.reward.steps import StepFinder
from farside.rl.types import Completion
from farside.train.loss import WeightedSum
from farside.train.model.heads import TokenOutputs
from farside.train.model.transformer import Transformer


@dataclass(frozen=True)
class Labelled:
    """An answer whose steps are labelled. ends: index of each step's last token among the answer's; labels: 1 where all
    is right up to there, 0 where not, or a probability of it."""

    completion: Completion
    ends: list[int]
    labels: list[float]


def step_batch(answers: Sequence[Labelled]) -> Batch:
    """Rows [B, S] in which each step's last token, as an input, has weight 1; its label is in extras["labels"]."""
    size = row_size([answer.completion for answer in answers]) + 1
    batch = Batch.of([padded_row(item.completion.prompt_tokens, item.completion.tokens, size, 0.0) for item in answers])
    labels = torch.zeros_like(batch.weights)
    for row, answer in enumerate(answers):
        places = len(answer.completion.prompt_tokens) + torch.tensor(answer.ends)
        batch.weights[row, places] = 1.0
        labels[row, places] = torch.tensor(answer.labels, dtype=labels.dtype)
    return replace(batch, extras={"labels": labels})


def process_loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
    """Binary cross-entropy of every step (arXiv 2305.20050; Math-Shepherd, arXiv 2312.08935, section 3.2).

    Metric: accuracy, the share of steps on whose label's side of 1/2 the model is.
    """
    assert outputs.values is not None
    labels_BS = batch.extras["labels"].to(outputs.values.dtype)
    losses_BS = F.binary_cross_entropy_with_logits(outputs.values, labels_BS, reduction="none")
    right_BS = (outputs.values > 0) == (labels_BS >= 0.5)
    return WeightedSum((batch.weights * losses_BS).sum(), {"accuracy": (batch.weights * right_BS).sum().detach()})


class ProcessModel:
    """Scores steps; implements ``Judge``. An answer is worth its worst step (Math-Shepherd, section 3.4)."""

    judges_steps = True

    def __init__(
        self,
        model: Transformer,
        finder: StepFinder,
        center: float = 0.0,
        scale: float = 1.0,
        rows_at_once: int = 256,
    ) -> None:
        self.model, self.finder, self.center, self.scale, self.rows_at_once = model, finder, center, scale, rows_at_once

    def logits(self, answers: Sequence[Labelled]) -> list[Tensor]:
        """Of each answer's steps, on the CPU."""
        cuts = range(0, len(answers), self.rows_at_once)
        batches = (step_batch(answers[first : first + self.rows_at_once]) for first in cuts)
        return [
            row[counted > 0]
            for batch, values in head_values(self.model, batches)
            for row, counted in zip(values, batch.weights)
        ]

    def opinions(self, completions: Sequence[Completion]) -> list[Opinion]:
        answers = [self._cut(item) for item in completions]
        return [
            Opinion(float(logits.min()), list(zip(answer.ends, logits.double().sigmoid().tolist())))
            for answer, logits in zip(answers, self.logits(answers))
        ]

    def _cut(self, item: Completion) -> Labelled:
        ends = self.finder.ends(item.tokens)
        return Labelled(item, ends, [0.0] * len(ends))
