"""The outcome reward model: a scalar head over the tokens of an answer, trained on pairs, used as a score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from farside.data.batch import Batch
from farside.parallel.context.attention import SingleRank
from farside.parallel.context.documents import Documents
from farside.rl.batches import padded_row, row_size
from farside.rl.types import Completion
from farside.train.loss import WeightedSum
from farside.train.model.heads import TokenOutputs
from farside.train.model.transformer import Transformer


def answer_batch(completions: Sequence[Completion], weight: float) -> Batch:
    """Rows [B, S] whose weight is spread evenly over the answer's tokens, as inputs."""
    size = row_size(completions) + 1
    rows = [padded_row(item.prompt_tokens, item.tokens, size, 0.0) for item in completions]
    for row, item in zip(rows, completions):
        start = len(item.prompt_tokens)
        row.weights[start : start + len(item.tokens)] = weight / len(item.tokens)
    return Batch.of(rows)


def answer_scores(values_BS: Tensor, weights_BS: Tensor) -> Tensor:
    """[B]: the mean of the scalar head over an answer's tokens, 0 for a row without weight.

    Not the last token alone, as is usual: an error stands at one token, and a shallow model that judges each where it
    stands needs no further layer to bring the judgements together (docs/LOG.md, 2026-11-22).
    """
    return (values_BS * weights_BS).sum(1) / weights_BS.sum(1).clamp(min=torch.finfo(weights_BS.dtype).tiny)


def bradley_terry_loss(outputs: TokenOutputs, batch: Batch, margin: float = 0.0) -> WeightedSum:
    """-log sigmoid(chosen - rejected - margin) per pair (Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155; the
    margin: Llama 2, arXiv 2307.09288, eq. 2, there by how much people preferred the one, here one for all pairs).

    Rows 2i and 2i+1 are a pair's chosen and rejected answer, each with half the pair's weight.
    Metric: accuracy, the share of pairs in the right order.
    """
    assert outputs.values is not None
    scores_B = answer_scores(outputs.values, batch.weights)
    margins = scores_B[0::2] - scores_B[1::2]
    weights = batch.weights.sum(1).view(-1, 2).sum(1)
    accuracy = (weights * (margins > 0)).sum().detach()
    return WeightedSum(-(weights * F.logsigmoid(margins - margin)).sum(), {"accuracy": accuracy})


@dataclass(frozen=True)
class Opinion:
    """raw: a score without bounds, higher is better. steps: (index of a step's last token among the answer's, how
    probably all is right up to there), of a model that judges steps."""

    raw: float
    steps: list[tuple[int, float]] | None = None


class Judge(Protocol):
    """A trained reward model. center, scale: mean and standard deviation of its raw scores on held-out answers.
    judges_steps: whether its opinions hold steps."""

    center: float
    scale: float
    judges_steps: bool

    def opinions(self, completions: Sequence[Completion]) -> list[Opinion]: ...


@torch.no_grad()
def head_values(model: Transformer, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the scalar head's values [B, S] at its tokens, on the CPU, from an unsharded model."""
    attention = SingleRank()
    for batch in batches:
        docs = Documents(batch.doc_ids, single=True)
        moved = batch.to(model.output_weight.device)
        attend = lambda layer, q, k, v, docs=docs: attention.attend(q, k, v, docs)  # noqa: E731
        outputs = model(moved.tokens, moved.positions, moved.labels, attend)
        assert outputs.values is not None
        yield batch, outputs.values.cpu()


class RewardModel:
    """Scores whole answers; implements ``Judge``."""

    judges_steps = False

    def __init__(self, model: Transformer, center: float = 0.0, scale: float = 1.0, rows_at_once: int = 256) -> None:
        self.model, self.center, self.scale, self.rows_at_once = model, center, scale, rows_at_once

    def raw_scores(self, completions: Sequence[Completion]) -> Tensor:
        """[N] on the CPU."""
        cuts = range(0, len(completions), self.rows_at_once)
        batches = (answer_batch(completions[first : first + self.rows_at_once], 1.0) for first in cuts)
        return torch.cat([answer_scores(values, batch.weights) for batch, values in head_values(self.model, batches)])

    def opinions(self, completions: Sequence[Completion]) -> list[Opinion]:
        return [Opinion(raw) for raw in self.raw_scores(completions).tolist()]


def normalisation(scores: np.ndarray) -> tuple[float, float]:
    """(center, scale) of a ``Judge``."""
    return float(scores.mean()), float(max(scores.std(), 1e-6))
