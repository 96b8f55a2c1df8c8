"""Which parameter is updated by what, and the global gradient norm."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from farside.configs.schema import OptimConfig, OptimKind
from farside.parallel import fsdp
from farside.parallel.box import Stored
from farside.parallel.plan import ShardTable
from farside.train.optim.adamw import AdamW
from farside.train.optim.muon import Muon


class Optimizer:
    """AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest."""

    def __init__(self, named: dict[str, nn.Parameter], config: OptimConfig, table: ShardTable) -> None:
        inner = [
            name for name, p in named.items() if config.kind is OptimKind.muon and p.ndim == 2 and ".layers." in name
        ]
        self.muon = Muon({name: named[name] for name in inner}, config.weight_decay, table) if inner else None
        self.adamw = AdamW({name: p for name, p in named.items() if name not in set(inner)}, config, table)
        self.steps = 0
        self.skipped: Tensor | int = 0
        """Of the steps; it stays on the device until somebody asks."""

    def step(self, lr: float, skip: Tensor) -> None:
        """skip: a flag on the device; if it is set, nothing changes, bit for bit."""
        if self.muon:
            self.muon.step(lr, skip)
        self.adamw.step(lr, skip)
        self.steps += 1
        self.skipped = self.skipped + skip.long()

    @property
    def updates(self) -> int:
        return self.steps - int(self.skipped)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """moment -> parameter's name -> this rank's part."""
        return {**self.adamw.state(), **(self.muon.state() if self.muon else {})}

    def load_state(self, stored: Stored, updates: int) -> None:
        """stored: whole moments as "<moment>.<name>"."""
        self.adamw.load_state(stored, updates)
        if self.muon:
            self.muon.load_state(stored)
        self.steps, self.skipped = updates, 0


@torch.no_grad()
def clip_gradients(named: Mapping[str, Tensor], max_norm: float, table: ShardTable) -> Tensor:
    """Scales gradients so that their global 2-norm is at most ``max_norm``; returns the norm before.

    Every parameter counts once, whichever ranks hold it.
    """
    norm = table.square_norm(named).sqrt()
    gradients = [fsdp.local(gradient) for gradient in named.values()]
    scale = torch.clamp(max_norm / (norm + 1e-12), max=1.0)
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    return norm
