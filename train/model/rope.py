"""Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of Hugging Face's Llama.

Extension by base change (ABF): a stage names another ``theta`` and every table follows. Shapes: B batch,
S sequence, H heads, D head dim, R = D/2 rotation planes.
"""

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """theta^(-2r/D) for r in 0..R-1, float64 [R]."""
    exponents_R = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    return theta**-exponents_R


def rope_tables(positions_BS: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [B, S, 1, R] of position times inverse frequency.

    Angles are computed in float64: in float32 a position of 10^6 already loses two digits.
    """
    angles_BSR = positions_BS[..., None].double() * inverse_frequencies(head_dim, theta, positions_BS.device)
    return angles_BSR.cos().to(dtype)[:, :, None], angles_BSR.sin().to(dtype)[:, :, None]


def apply_rope(x_BSHD: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates plane r = (x_r, x_{r+R}) by the angle of its position."""
    cos, sin = tables
    first, second = x_BSHD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
