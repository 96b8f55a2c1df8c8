"""Rotary embedding against complex multiplication, its defining property, and the scalings against golden values,
their formulae and Hugging Face's own tables."""

import cmath
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from farside.configs.errors import UserError
from farside.configs.rope import Rope
from farside.configs.schema import RopeKind, RopeScalingConfig
from farside.train.model.rope import apply_rope, attention_factor, inverse_frequencies, rope_tables, yarn_range


@pytest.mark.parametrize(("dim", "theta"), [(2, 1e4), (8, 1e4), (6, 5e5)])
def test_rotates_each_plane_by_position_times_frequency(dim: int, theta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, dim, generator=generator, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 1, 1000, 123456]])
    rotated = apply_rope(x, rope_tables(positions, dim, Rope(theta), torch.float64))
    half = dim // 2
    for b in range(2):
        for s in range(5):
            for h in range(3):
                for r in range(half):
                    angle = int(positions[b, s]) * theta ** (-2 * r / dim)
                    value = complex(x[b, s, h, r], x[b, s, h, r + half]) * cmath.exp(1j * angle)
                    assert abs(complex(rotated[b, s, h, r], rotated[b, s, h, r + half]) - value) < 1e-9


def test_golden_angles() -> None:
    assert inverse_frequencies(8, Rope(1e4)).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-15)
    assert inverse_frequencies(4, Rope(5e5)).tolist() == pytest.approx([1.0, 5e5**-0.5], rel=1e-15)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5))
def test_scores_depend_on_distance_only(first: int, second: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(at: int, to: int) -> float:
        tables = [rope_tables(torch.tensor([[place]]), 8, Rope(1e4), torch.float64) for place in (at, to)]
        return float((apply_rope(q, tables[0]) * apply_rope(k, tables[1])).sum())

    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-8)


def test_far_positions_keep_their_precision_in_fp32() -> None:
    place = 1_048_573
    cos, sin = rope_tables(torch.tensor([[place]]), 4, Rope(1e4), torch.float32)
    assert cos.dtype == torch.float32
    wanted = [cmath.exp(1j * place), cmath.exp(1j * place * 0.01)]
    assert cos[..., :2].flatten().tolist() == cos[..., 2:].flatten().tolist()
    assert cos[..., :2].flatten().tolist() == pytest.approx([value.real for value in wanted], abs=1e-7)
    assert sin[..., 2:].flatten().tolist() == (-sin[..., :2]).flatten().tolist()
    assert sin[..., 2:].flatten().tolist() == pytest.approx([value.imag for value in wanted], abs=1e-7)


def scaled(kind: RopeKind, factor: float = 16.0, original_length: int = 4096, theta: float = 1e4) -> Rope:
    return Rope.of(theta, RopeScalingConfig(kind, factor, original_length), "model.")


def test_position_interpolation_divides_positions() -> None:
    positions = torch.tensor([[0, 16, 32_000]])
    wide = rope_tables(positions, 8, scaled(RopeKind.pi), torch.float64)
    plain = rope_tables(positions // 16, 8, Rope(1e4), torch.float64)
    for one, other in zip(wide, plain):
        assert (one - other).abs().max() < 1e-12


def test_ntk_is_a_larger_base_with_its_golden_value() -> None:
    found = inverse_frequencies(128, scaled(RopeKind.ntk))
    base = found[1].item() ** -64
    assert base == pytest.approx(167_198.7, abs=0.05)
    plain = inverse_frequencies(128, Rope(1e4))
    assert found[0] == 1.0, "the fastest plane is left alone"
    assert found[-1].item() == pytest.approx(plain[-1].item() / 16, rel=1e-12), "the slowest is interpolated fully"


def test_yarn_has_its_golden_values() -> None:
    rope = scaled(RopeKind.yarn)
    assert yarn_range(128, rope) == (20, 46)
    assert attention_factor(rope) == pytest.approx(1.27726, abs=5e-6)
    assert attention_factor(scaled(RopeKind.yarn, 32.0)) == pytest.approx(1.34657, abs=5e-6)
    assert attention_factor(scaled(RopeKind.ntk)) == 1.0
    found, plain = inverse_frequencies(128, rope), inverse_frequencies(128, Rope(1e4))
    for plane in range(64):
        kept = min(max((46 - plane) / 26, 0.0), 1.0)
        wanted = plain[plane].item() * (kept + (1 - kept) / 16)
        assert found[plane].item() == pytest.approx(wanted, rel=1e-14)


def test_yarn_multiplies_cos_and_sin_by_its_attention_factor() -> None:
    rope = scaled(RopeKind.yarn)
    cos, sin = rope_tables(torch.arange(9)[None], 64, rope, torch.float64)
    assert ((cos**2 + sin**2).sqrt() - (0.1 * math.log(16) + 1)).abs().max() < 1e-14


@pytest.mark.parametrize("dim", [16, 32, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("original_length", [64, 256, 4096])
@pytest.mark.parametrize("kind", [RopeKind.pi, RopeKind.ntk, RopeKind.yarn])
def test_tables_are_those_of_hugging_face(kind: RopeKind, original_length: int, theta: float, dim: int) -> None:
    """Theirs are computed in fp32, which bounds the agreement."""
    names = {RopeKind.pi: "linear", RopeKind.ntk: "dynamic", RopeKind.yarn: "yarn"}
    rope = scaled(kind, 8.0, original_length, theta)
    parameters: dict[str, Any] = {"rope_type": names[kind], "rope_theta": theta, "factor": 8.0}
    if kind is RopeKind.yarn:
        parameters["original_max_position_embeddings"] = original_length
    if kind is RopeKind.ntk:
        parameters["factor"] = 1.0  # theirs grows with the sequence: at 8 times the length it is the factor of 8
    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=original_length,
        rope_parameters=parameters,
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[names[kind]](config, torch.device("cpu"), seq_len=8 * original_length)
    assert inverse_frequencies(dim, rope).tolist() == pytest.approx(theirs.tolist(), rel=3e-6)
    assert attention_factor(rope) == pytest.approx(factor, rel=1e-12)


def test_a_rope_survives_a_checkpoint_s_record_and_changes_by_parts() -> None:
    rope = scaled(RopeKind.yarn)
    assert Rope.from_record(rope.record()) == rope
    assert rope.record()["kind"] == "yarn"
    assert rope.changed(None, RopeScalingConfig(), "eval.") == rope
    assert rope.changed(5e5, RopeScalingConfig(), "eval.") == Rope(5e5, RopeKind.yarn, 16.0, 4096)
    assert rope.changed(None, RopeScalingConfig(RopeKind.none), "eval.") == Rope(1e4)


@pytest.mark.parametrize(
    ("theta", "scaling", "message"),
    [
        (0.5, RopeScalingConfig(), "model.rope_theta = 0.5; give more than 1"),
        (1e4, RopeScalingConfig(factor=4.0), "model.rope_scaling: factor = 4.0 but no kind; use pi, ntk or yarn"),
        (1e4, RopeScalingConfig(RopeKind.pi, 0.5), "model.rope_scaling.factor = 0.5; give at least 1"),
        (1e4, RopeScalingConfig(RopeKind.yarn, 4.0), "model.rope_scaling.original_length = 0; yarn needs the length"),
    ],
)
def test_a_scaling_that_means_nothing_is_named(theta: float, scaling: RopeScalingConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Rope.of(theta, scaling, "model.")
    assert "\n" not in str(error.value)
