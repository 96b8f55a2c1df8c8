"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) over sharded or plain parameters, with state by canonical name."""

from functools import partial

import torch
from torch import Tensor, nn

from farside.configs.schema import OptimConfig
from farside.parallel.box import Stored
from farside.parallel.plan import ShardTable

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """torch's fused AdamW; matrices decay, vectors (norm weights) do not."""

    def __init__(self, named: dict[str, nn.Parameter], config: OptimConfig, table: ShardTable) -> None:
        self.named, self.table = named, table
        groups = [
            {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )

    def step(self, lr: float, skip: Tensor) -> None:
        """skip: a flag on the device; if it is set, parameters, moments and their age stay as they are."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # where torch's fused kernel looks for a flag to skip by
        vars(self.optimizer).update(grad_scale=None, found_inf=skip.float())
        self.optimizer.step()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """moment -> parameter's name -> this rank's part; zeros before the first step."""
        return {
            moment: {
                name: self.optimizer.state[parameter][moment]
                if parameter in self.optimizer.state
                else torch.zeros_like(parameter, requires_grad=False)
                for name, parameter in self.named.items()
            }
            for moment in MOMENTS
        }

    def load_state(self, stored: Stored, updates: int) -> None:
        """stored: whole moments as "exp_avg.<name>" and "exp_avg_sq.<name>". updates: the number of steps they have
        seen (bias correction)."""
        for name, parameter in self.named.items():
            state: dict[str, Tensor] = {"step": torch.tensor(float(updates), device=parameter.device)}
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, requires_grad=False)
                self.table.load_(name, state[moment], partial(stored.read, f"{moment}.{name}"))
            self.optimizer.state[parameter] = state
