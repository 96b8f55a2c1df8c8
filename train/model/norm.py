"""RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight. Shapes: N tokens (and heads), E features."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farside.parallel import types


class RMSNorm(nn.Module):
    """Computed in at least float32, returned in the input's type; the weight is rounded to it first, as FSDP does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight_E = self.weight.to(x.dtype)
        if torch.compiler.is_compiling():  # the compiler fuses the plain formula better than the products below
            return F.rms_norm(x, weight_E.shape, weight_E, self.eps)
        return _RMSNorm.apply(x, weight_E, self.eps)


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps) and g the gradient: dw = sum_N g x r, dx = r g w - x r^3 mean(g x w).

    torch differentiates its formula op by op, which on the CPU makes a dozen passes over memory; here both sums are
    products of a matrix and a vector.
    """

    @staticmethod
    def spmd_typecheck(out: Tensor, *, x: Tensor, weight_E: Tensor) -> None:
        types.type_norm(out, x, weight_E)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        precision = torch.promote_types(x.dtype, torch.float32)
        x_NE = x.reshape(-1, x.shape[-1]).to(precision)
        scale_N = (torch.linalg.vecdot(x_NE, x_NE) / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight_E, scale_N)
        return (x_NE * scale_N[:, None]).mul_(weight_E.to(precision)).to(x.dtype).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_E, scale_N = ctx.saved_tensors
        x_NE = x.reshape(-1, x.shape[-1]).to(scale_N.dtype)
        g_NE = gradients[0].reshape(x_NE.shape).to(scale_N.dtype)
        weight = weight_E.to(scale_N.dtype)
        product_NE = g_NE * x_NE
        inward_N = (product_NE @ weight) * scale_N**3 / x.shape[-1]
        d_x_NE = (g_NE * weight).mul_(scale_N[:, None]).addcmul_(x_NE, inward_N[:, None], value=-1)
        return d_x_NE.to(x.dtype).view(x.shape), (scale_N @ product_NE).to(weight_E.dtype), None
