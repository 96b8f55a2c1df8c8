"""The SwiGLU MLP, of all tokens at once or chunk by chunk, so that its memory does not grow with the sequence.

Shapes: N tokens (of any number of dims), C tokens of a chunk, E model dim, F width (of this rank, under tensor
parallelism).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farside.configs.schema import ModelConfig
from farside.parallel import types
from farside.parallel.tensor import TensorParallel


class Linear(nn.Linear):
    """Computes in the precision of its input; a weight kept in another one is rounded for the product.

    So weights can stay float32 where the computation is in bfloat16, and their gradients add up in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202). chunk: tokens at once; 0: all."""

    def __init__(self, config: ModelConfig, tensors: TensorParallel) -> None:
        super().__init__()
        width = config.intermediate_size // tensors.size
        self.gate_proj = Linear(config.hidden_size, width, bias=False)
        self.up_proj = Linear(config.hidden_size, width, bias=False)
        self.down_proj = Linear(width, config.hidden_size, bias=False)
        self.chunk = 0

    def forward(self, x_NE: Tensor) -> Tensor:
        if not self.chunk:
            return self.down_proj(F.silu(self.gate_proj(x_NE)) * self.up_proj(x_NE))
        return chunked(x_NE, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight, self.chunk)


def chunked(x_NE: Tensor, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor, chunk: int) -> Tensor:
    """The MLP of ``chunk`` tokens at a time: what it saves and what it holds at once is free of the F of all tokens.

    The backward pass computes every chunk again (DeepSpeed's TiledMLP, arXiv 2506.13996). The node is made before the
    output is computed: recomputation of a block ends when all that its backward pass needs is there, and so leaves the
    MLP out, which this node computes again anyway.
    """
    out_NE = ChunkedMLP.apply(x_NE, gate_FE, up_FE, down_EF, chunk)
    with torch.no_grad(), types.unchecked():
        fill(out_NE, x_NE, gate_FE, up_FE, down_EF, chunk)
    return out_NE


def fill(out_NE: Tensor, x_NE: Tensor, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor, chunk: int) -> None:
    """Computes the MLP into ``out_NE``."""
    gate_FE, up_FE, down_EF = (weight.to(x_NE.dtype) for weight in (gate_FE, up_FE, down_EF))
    out_NE, x_NE = out_NE.view(-1, out_NE.shape[-1]), x_NE.reshape(-1, x_NE.shape[-1])
    for out_CE, x_CE in zip(out_NE.split(chunk), x_NE.split(chunk)):
        torch.mm(F.silu(x_CE @ gate_FE.T).mul_(x_CE @ up_FE.T), down_EF.T, out=out_CE)


class ChunkedMLP(torch.autograd.Function):
    """apply(x, gate, up, down, chunk) -> room for the output, which the caller fills.

    With a = x gate', b = x up', h = silu(a) b and g the gradient of h down': d down = g' h, d h = g down,
    d b = d h silu(a), d a = d h b silu'(a). Gradients of weights add up over the chunks in place, in at least fp32.
    """

    @staticmethod
    def spmd_typecheck(out: Tensor, *, x_NE: Tensor, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor) -> None:
        types.type_mlp(out, x_NE, gate_FE, up_FE, down_EF)

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(x_NE, gate_FE, up_FE, down_EF)
        ctx.chunk = chunk
        return x_NE.new_empty(x_NE.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x_NE, *weights = ctx.saved_tensors
        gate_FE, up_FE, down_EF = (weight.to(x_NE.dtype) for weight in weights)
        d_gate_FE, d_up_FE, d_down_EF = sums = [
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights
        ]
        d_x_NE = x_NE.new_empty(x_NE.shape)
        tokens = (x.reshape(-1, x.shape[-1]).split(ctx.chunk) for x in (x_NE, gradients[0], d_x_NE))
        for x_CE, g_CE, d_x_CE in zip(*tokens):
            a_CF, b_CF, d_h_CF = x_CE @ gate_FE.T, x_CE @ up_FE.T, g_CE @ down_EF
            silu_CF = F.silu(a_CF)
            d_down_EF += g_CE.T @ (silu_CF * b_CF)
            d_up_FE += silu_CF.mul_(d_h_CF).T @ x_CE
            d_a_CF = torch.ops.aten.silu_backward(d_h_CF.mul_(b_CF), a_CF)
            d_gate_FE += d_a_CF.T @ x_CE
            torch.addmm(d_a_CF @ gate_FE, silu_CF, up_FE, out=d_x_CE)  # silu_CF is d b by now
        return d_x_NE, *(total.to(weight.dtype) for total, weight in zip(sums, weights)), None
