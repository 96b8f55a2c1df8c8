"""Tensor parallelism with sequence parallelism (Megatron-LM, arXiv 1909.08053 and 2205.05198), by explicit collectives.

Inside a block each rank has all tokens and its share of heads, of the MLP's width or of the vocabulary; between the
blocks it has its share of the tokens. ``WholeTensors`` is the same seam at degree 1 and costs nothing.

What a rank holds of a parameter is said by ``farside.parallel.plan``; gradients of parameters that every rank holds
whole (norms) are partial sums here, summed once a step by the engine.

Shapes: B batch, L sequence of this context-parallel rank, T = L/tp, E model dim, N tokens, V vocabulary, v = rows of
the vocabulary here.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.parallel import comm


class TensorParallel(Protocol):
    group: comm.Group
    size: int
    rank: int

    def enter(self, x_BTE: Tensor) -> Tensor:
        """[B, T, E] -> [B, L, E]: all tokens, for a column-parallel product."""
        ...

    def leave(self, x_BLE: Tensor) -> Tensor:
        """[B, L, E] -> [B, T, E]: the sum of a row-parallel product's parts, cut into shares of the tokens."""
        ...

    def embed(self, tokens_BL: Tensor, weight_vE: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a vocabulary-parallel embedding, in the type given: [B, T, E]."""
        ...

    def unshard(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, L, ...] for outputs that every rank goes on to treat alike."""
        ...

    def combine(self, picked_N: Tensor, normaliser_N: Tensor, entropy_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From this rank's rows of the vocabulary to all: the label's logit (0 where another rank holds it),
        logsumexp of the logits, entropy of their softmax in nats."""
        ...


class WholeTensors:
    """Tensor-parallel degree 1."""

    group: comm.Group = None
    size = 1
    rank = 0

    def enter(self, x_BTE: Tensor) -> Tensor:
        return x_BTE

    def leave(self, x_BLE: Tensor) -> Tensor:
        return x_BLE

    def embed(self, tokens_BL: Tensor, weight_vE: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(tokens_BL, weight_vE).to(dtype)

    def unshard(self, x: Tensor) -> Tensor:
        return x

    def combine(self, picked_N: Tensor, normaliser_N: Tensor, entropy_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return picked_N, normaliser_N, entropy_N


class ShardedTensors:
    """Tensor-parallel degree of ``group``."""

    def __init__(self, group: comm.Group) -> None:
        self.group, self.size, self.rank = group, comm.size(group), comm.rank(group)

    def enter(self, x_BTE: Tensor) -> Tensor:
        return comm.gather(x_BTE, 1, self.group)

    def leave(self, x_BLE: Tensor) -> Tensor:
        return comm.sum_scatter(x_BLE, 1, self.group)

    def embed(self, tokens_BL: Tensor, weight_vE: Tensor, dtype: torch.dtype) -> Tensor:
        rows = tokens_BL - self.rank * len(weight_vE)
        here = (rows >= 0) & (rows < len(weight_vE))
        # a look-up of row 0 for tokens that others hold, made zero: the gradient of row 0 gets exactly nothing
        x_BLE = F.embedding(torch.where(here, rows, 0), weight_vE).to(dtype) * here[..., None]
        return comm.sum_scatter(x_BLE, 1, self.group)

    def unshard(self, x: Tensor) -> Tensor:
        return comm.gather_alike(x, 1, self.group)

    def combine(self, picked_N: Tensor, normaliser_N: Tensor, entropy_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        largest_N = comm.max_(normaliser_N.clone(), self.group)
        shares_N = (normaliser_N - largest_N).exp()
        picked_N, total_N = comm.sum_(torch.stack([picked_N, shares_N]), self.group).unbind()
        shares_N = shares_N / total_N  # probability of this rank's rows
        # entropy of a mixture of disjoint parts: the parts' own, and that of the choice between them
        entropy_N = comm.sum_(shares_N * entropy_N - torch.special.xlogy(shares_N, shares_N), self.group)
        return picked_N, largest_N + total_N.log(), entropy_N
