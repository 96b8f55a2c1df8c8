"""Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form of Hugging Face's Llama.

Extension beyond the trained length: another base (ABF), position interpolation (arXiv 2306.15595), NTK-aware
scaling, YaRN (arXiv 2309.00071). A stage names another ``Rope`` and every table follows.
Shapes: B batch, S sequence, H heads, D head dim, R = D/2 rotation planes.
"""

import math

import torch
from torch import Tensor

from farside.configs.rope import Rope
from farside.configs.schema import RopeKind

BETA_FAST, BETA_SLOW = 32, 1
"""YaRN: planes that turn more often than this over the original length keep their frequency; those that turn less
often than that are interpolated."""


def inverse_frequencies(head_dim: int, rope: Rope, device: torch.device | None = None) -> Tensor:
    """Radians a token of each plane, float64 [R]: theta^(-2r/D) for r in 0..R-1, scaled as ``rope`` says."""
    exponents_R = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    if rope.kind is RopeKind.ntk:  # a base for which the slowest plane is interpolated fully, the fastest not at all
        return (rope.theta * rope.factor ** (head_dim / (head_dim - 2))) ** -exponents_R
    frequencies_R = rope.theta**-exponents_R
    if rope.kind is RopeKind.pi:
        return frequencies_R / rope.factor
    if rope.kind is RopeKind.yarn:
        low, high = yarn_range(head_dim, rope)
        planes_R = torch.arange(len(frequencies_R), dtype=torch.float64, device=device)
        interpolated_R = ((planes_R - low) / (high - low)).clamp(0, 1)
        return frequencies_R * (1 - interpolated_R) + frequencies_R / rope.factor * interpolated_R
    return frequencies_R


def yarn_range(head_dim: int, rope: Rope) -> tuple[float, float]:
    """The last plane that keeps its frequency and the first that is interpolated fully; between them it is a ramp.

    Rounded and clamped as in the reference implementation and in Hugging Face's.
    """

    def plane(turns: float) -> float:
        return head_dim * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = max(math.floor(plane(BETA_FAST)), 0), min(math.ceil(plane(BETA_SLOW)), head_dim - 1)
    return low, high if high != low else high + 1e-3


def attention_factor(rope: Rope) -> float:
    """YaRN's sqrt(1/t) = 0.1 ln s + 1 on queries and keys each, so that scores grow by its square; else 1."""
    return 0.1 * math.log(rope.factor) + 1 if rope.kind is RopeKind.yarn else 1.0


def rope_tables(positions_BS: Tensor, head_dim: int, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) [B, S, 1, D] of position times inverse frequency, times YaRN's factor.

    Angles are computed in float64: in float32 a position of 10^6 already loses two digits.
    """
    angles_BSR = positions_BS[..., None].double() * inverse_frequencies(head_dim, rope, positions_BS.device)
    factor = attention_factor(rope)
    cos, sin = (angles_BSR.cos() * factor).to(dtype), (angles_BSR.sin() * factor).to(dtype)
    return torch.cat((cos, cos), dim=-1)[:, :, None], torch.cat((-sin, sin), dim=-1)[:, :, None]


def apply_rope(x_BSHD: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates plane r = (x_r, x_{r+R}) by the angle of its position, in the tables' precision; of x's type.

    One rolled copy instead of halves: two passes over memory where products of halves and their sum take six.
    """
    cos, sin = tables
    swapped_BSHD = x_BSHD.roll(x_BSHD.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BSHD * cos, swapped_BSHD, sin).to(x_BSHD.dtype)
