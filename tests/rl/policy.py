"""Runs an objective over given tokens, as the engine would."""

import torch
from torch import Tensor

from farside.data.batch import Batch
from farside.rl.loss import Objective
from farside.rl.objective import rl_loss
from farside.train.model.heads import TokenOutputs


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weighed(
    objective: Objective,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    doc_ids: Tensor | None = None,
    **extras: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(Σ weight * loss, weighted sums of metrics) of tokens [S] or [B, S]; doc_ids None: one sequence a row."""
    row = lambda x: x if x.dim() == 2 else x[None]  # noqa: E731
    zeros = torch.zeros_like(row(weights), dtype=torch.long)
    docs = zeros if doc_ids is None else row(doc_ids)
    named = {"old_logprobs": old_logprobs, "advantages": advantages, **extras}
    batch = Batch(zeros, zeros, row(weights), zeros, docs, {name: row(value) for name, value in named.items()})
    outputs = TokenOutputs(row(logprobs), torch.zeros_like(row(weights)))
    result = rl_loss(objective)(outputs, batch)
    return result.total, result.metrics
