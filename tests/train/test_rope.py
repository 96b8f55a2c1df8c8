"""Rotary embedding against complex multiplication, and its defining property."""

import cmath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.train.model.rope import apply_rope, inverse_frequencies, rope_tables


@pytest.mark.parametrize(("dim", "theta"), [(2, 1e4), (8, 1e4), (6, 5e5)])
def test_rotates_each_plane_by_position_times_frequency(dim: int, theta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, dim, generator=generator, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 1, 1000, 123456]])
    rotated = apply_rope(x, rope_tables(positions, dim, theta, torch.float64))
    half = dim // 2
    for b in range(2):
        for s in range(5):
            for h in range(3):
                for r in range(half):
                    angle = int(positions[b, s]) * theta ** (-2 * r / dim)
                    value = complex(x[b, s, h, r], x[b, s, h, r + half]) * cmath.exp(1j * angle)
                    assert abs(complex(rotated[b, s, h, r], rotated[b, s, h, r + half]) - value) < 1e-9


def test_golden_angles() -> None:
    assert inverse_frequencies(8, 1e4).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-15)
    assert inverse_frequencies(4, 5e5).tolist() == pytest.approx([1.0, 5e5**-0.5], rel=1e-15)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5))
def test_scores_depend_on_distance_only(first: int, second: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(at: int, to: int) -> float:
        tables = [rope_tables(torch.tensor([[place]]), 8, 1e4, torch.float64) for place in (at, to)]
        return float((apply_rope(q, tables[0]) * apply_rope(k, tables[1])).sum())

    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-8)


def test_far_positions_keep_their_precision_in_fp32() -> None:
    place = 1_048_573
    cos, sin = rope_tables(torch.tensor([[place]]), 4, 1e4, torch.float32)
    assert cos.dtype == torch.float32
    wanted = [cmath.exp(1j * place), cmath.exp(1j * place * 0.01)]
    assert cos.flatten().tolist() == pytest.approx([value.real for value in wanted], abs=1e-7)
    assert sin.flatten().tolist() == pytest.approx([value.imag for value in wanted], abs=1e-7)
