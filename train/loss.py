"""Losses as sums: Σ weight·loss over local tokens. The engine divides by the weight of the global batch."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from farside.data.batch import Batch
from farside.train.model.heads import TokenOutputs


@dataclass(frozen=True)
class WeightedSum:
    """total: scalar, Σ weight·loss of this micro-batch on this rank. metrics: further detached sums to report,
    divided by the same weight."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


LossFn = Callable[[TokenOutputs, Batch], WeightedSum]


def lm_loss(outputs: TokenOutputs, batch: Batch) -> WeightedSum:
    """Next-token cross-entropy in nats; pretraining and supervised fine-tuning differ in their weights only."""
    assert outputs.logprobs is not None
    return WeightedSum(-(batch.weights * outputs.logprobs).sum())
