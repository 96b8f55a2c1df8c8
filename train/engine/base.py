"""The seam between the loop and whatever computes: native torch now, DeepSpeed and Megatron-core later.

The loss contract: one scalar, Σ weight·loss over the tokens of the global batch divided by the global Σ weight;
gradients are sums over ranks of that scalar. How a library averages by itself is its adapter's business.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from farside.configs.rope import Rope
from farside.data.batch import Batch
from farside.parallel.box import Piece, Stored
from farside.train.loss import LossFn
from farside.train.model.heads import TokenOutputs


@dataclass(frozen=True)
class Outputs:
    """loss: the global scalar, alike on every rank; metrics: global sums over the same weight. Device scalars."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class StepStats:
    """grad_norm: global 2-norm before clipping; skipped: whether nothing was changed. Device scalars, alike on every
    rank."""

    grad_norm: Tensor
    skipped: Tensor


Judge = Callable[[Tensor], Tensor]
"""The gradient's norm -> a flag on its device: whether this step's update is to be skipped."""


def never(grad_norm: Tensor) -> Tensor:
    return torch.zeros_like(grad_norm, dtype=torch.bool)


@dataclass(frozen=True)
class EngineState:
    """What one rank is to save, views of live tensors: over all ranks every element is there once.

    model: weights by canonical name. optimizer: moments as "<moment>.<name>". updates: the number of optimizer steps
    behind the moments.
    """

    model: dict[str, Piece]
    optimizer: dict[str, Piece]
    updates: int


class Stateful(Protocol):
    """What a checkpoint stores and restores."""

    def state_dict(self) -> EngineState:
        """No communication."""
        ...

    def check_replicas(self) -> None:
        """Raises ReplicasDiffer if ranks that hold the same weights do not. Collective."""
        ...

    def load_state_dict(self, model: Stored, optimizer: Stored, updates: int) -> None:
        """Reads what this rank needs of whole tensors; no communication."""
        ...


class Engine(Stateful, Protocol):
    def forward_backward(self, microbatches: Sequence[Batch], loss_fn: LossFn, total_weight: float) -> Outputs:
        """Makes the gradients of one ``step``, all micro-batches in one call. ``total_weight`` is Σ weight over all
        ranks, which bring equally many batches."""
        ...

    def step(self, lr: float, judge: Judge = never) -> StepStats:
        """Clips, updates, clears gradients. judge: from the gradient's norm, whether to leave everything as it is."""
        ...

    def token_outputs(self, microbatches: Sequence[Batch]) -> list[TokenOutputs]:
        """Per-token outputs without gradient."""
        ...

    def set_rope(self, rope: Rope) -> None: ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole weights by canonical name, one at a time: export and weight sync. Collective."""
        ...
