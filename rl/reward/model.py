"""The outcome reward model: a scalar head over the tokens of an answer, trained on pairs, used as a score."""

from collections.abc import Sequence

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


def bradley_terry_loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
    """-log sigmoid(chosen - rejected) per pair (Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155).

    Rows 2i and 2i+1 are a pair's chosen and rejected answer, each with half the pair's weight.
    Metric: accuracy, the share of pairs in the right order.
    """
    assert outputs.values is not None
    scores_B = answer_scores(outputs.values, batch.weights)
    margins = scores_B[0::2] - scores_B[1::2]
    weights = batch.weights.sum(1).view(-1, 2).sum(1)
    accuracy = (weights * (margins > 0)).sum().detach()
    return WeightedSum(-(weights * F.logsigmoid(margins)).sum(), {"accuracy": accuracy})


class RewardModel:
    """Scores completions. center, scale: mean and standard deviation of scores on held-out answers, so that the
    sigmoid of the normalised score spreads over (0, 1)."""

    def __init__(self, model: Transformer, center: float = 0.0, scale: float = 1.0, rows_at_once: int = 256) -> None:
        self.model, self.center, self.scale, self.rows_at_once = model, center, scale, rows_at_once
        self.attention = SingleRank()

    @torch.no_grad()
    def raw_scores(self, completions: Sequence[Completion]) -> Tensor:
        """[N] on the CPU."""
        scores = []
        for first in range(0, len(completions), self.rows_at_once):
            part = completions[first : first + self.rows_at_once]
            batch = answer_batch(part, 1.0)
            docs = Documents(batch.doc_ids, single=True)
            batch = batch.to(self.model.output_weight.device)
            attend = lambda layer, q, k, v, docs=docs: self.attention.attend(q, k, v, docs)  # noqa: E731
            outputs = self.model(batch.tokens, batch.positions, batch.labels, attend)
            scores.append(answer_scores(outputs.values, batch.weights).cpu())
        return torch.cat(scores)

    def scores(self, completions: Sequence[Completion]) -> list[float]:
        """Normalised: sigmoid of the standardised score, in (0, 1)."""
        return ((self.raw_scores(completions) - self.center) / self.scale).sigmoid().tolist()


def normalisation(scores: np.ndarray) -> tuple[float, float]:
    """(center, scale) for ``RewardModel``."""
    return float(scores.mean()), float(max(scores.std(), 1e-6))
