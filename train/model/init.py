"""Initial weights: a function of (seed, canonical name, logical index), so alike for every mesh and engine."""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from farside.configs.schema import ModelConfig
from farside.parallel.plan import ShardTable


def initial_value(config: ModelConfig, seed: int, name: str, shape: torch.Size) -> Tensor:
    """The whole parameter, float32 on the CPU.

    Norm weights are 1; everything else is normal with ``initializer_range``, and the two matrices that write
    to the residual stream are divided by sqrt(2 layers) (GPT-2's rule).
    """
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    std = config.initializer_range
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        std /= math.sqrt(2 * config.num_hidden_layers)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialise(
    parameters: Iterable[tuple[str, nn.Parameter]], config: ModelConfig, seed: int, table: ShardTable
) -> None:
    """Fills every parameter, sharded or not, without communication."""
    for name, parameter in parameters:
        table.copy_full_(name, parameter, initial_value(config, seed, name, table.shapes[name]))
