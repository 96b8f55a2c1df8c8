"""RMSNorm's own gradient against autograd of the formula."""

import pytest
import torch
from torch import Tensor

from farside.train.model.norm import RMSNorm


def formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("shape", [(3, 4, 10), (2, 5, 3, 6), (1, 1, 7)])
def test_output_and_gradients_are_the_formula_s_in_fp64(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    norm = RMSNorm(shape[-1], 0.1).double()
    weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    found = []
    for own in (True, False):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        norm.weight = torch.nn.Parameter(b)
        out = norm(a) if own else formula(a, b, 0.1)
        d_b = norm.weight if own else b
        found.append([out.detach(), *torch.autograd.grad(out, (a, d_b), g)])
    for one, other in zip(*found):
        assert (one - other).abs().max() < 1e-13


def test_bf16_is_reduced_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (100 * torch.randn(64, 512, generator=generator)).bfloat16().requires_grad_()
    g = torch.randn(64, 512, generator=generator).bfloat16()
    norm = RMSNorm(512, 1e-6)
    exact_x = x.detach().double().requires_grad_()
    exact_w = torch.ones(512, dtype=torch.float64, requires_grad=True)
    wanted = formula(exact_x, exact_w, 1e-6)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert ((out - wanted).abs() <= 2**-8 * wanted.abs()).all()
    d_x, d_w = torch.autograd.grad(out, (x, norm.weight), g)
    exact = torch.autograd.grad(wanted, (exact_x, exact_w), g.double())
    assert d_w.dtype == torch.float32
    for found, gradient in zip((d_x, d_w), exact):
        assert (found - gradient).norm() <= 2**-8 * gradient.norm()
