"""Muon: momentum, then orthogonalised updates, for the matrices inside the blocks.

Keller Jordan's Newton-Schulz iteration with the coefficients of his reference; scaling and weight decay as in
Moonlight (arXiv 2502.16982): W <- W - lr (0.2 sqrt(max(rows, cols)) O + wd W), which gives an update of RMS 0.2
for full-rank O, so that AdamW's learning rate serves both.
"""

from collections import defaultdict
from functools import partial

import torch
from torch import Tensor, nn

from farside.parallel import fsdp
from farside.parallel.box import Stored
from farside.parallel.plan import ShardTable

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = "momentum"


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """Pushes the singular values of each matrix of [..., rows, cols] towards 1 (into 0.68..1.16 after 5 steps).

    Computed in the input's precision: torch.optim.Muon rounds to bf16 here, which costs 3e-4.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Over sharded or plain matrices: each rank keeps its shard of the momentum; one all-gather per step brings the
    whole updates together, because orthogonalisation needs whole matrices."""

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        weight_decay: float,
        table: ShardTable,
        momentum: float = 0.95,
    ) -> None:
        self.named, self.weight_decay, self.momentum, self.table = named, weight_decay, momentum, table
        self.buffers = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in named.items()}

    @torch.no_grad()
    def step(self, lr: float, skip: Tensor) -> None:
        """skip: a flag on the device; if it is set, matrices and momenta stay as they are."""
        shards = {}
        for name, parameter in self.named.items():
            assert parameter.grad is not None
            gradient, buffer = fsdp.local(parameter.grad), fsdp.local(self.buffers[name])
            momentum = buffer.mul(self.momentum).add_(gradient)
            shards[name] = gradient + self.momentum * momentum  # Nesterov
            buffer.copy_(torch.where(skip, buffer, momentum))
        whole = self.table.gather(shards)
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, matrix in whole.items():
            by_shape[matrix.shape].append(name)
        for shape, names in by_shape.items():  # equal shapes go through one batched iteration
            updates = orthogonalise(torch.stack([whole[name] for name in names]))
            for name, update in zip(names, updates):
                target = fsdp.local(self.named[name])
                new = target.mul(1 - lr * self.weight_decay)
                new.sub_(self.table.shard_of(name, update, self.named[name]), alpha=lr * 0.2 * max(shape) ** 0.5)
                target.copy_(torch.where(skip, target, new))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """ "momentum" -> parameter's name -> this rank's part."""
        return {MOMENTUM: dict(self.buffers)}

    def load_state(self, stored: Stored) -> None:
        """stored: whole momenta as "momentum.<name>"."""
        for name, buffer in self.buffers.items():
            self.table.load_(name, buffer, partial(stored.read, f"{MOMENTUM}.{name}"))
