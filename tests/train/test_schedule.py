"""Learning rates at golden points and at the ends, and the operation count by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farside.configs.schema import ModelConfig, ScheduleConfig, ScheduleKind
from farside.train.model.flops import flops_per_token
from farside.train.schedule import lr_factor

COSINE = ScheduleConfig(ScheduleKind.cosine, warmup_steps=10, min_ratio=0.1)
WSD = ScheduleConfig(ScheduleKind.wsd, warmup_steps=10, decay_share=0.2, min_ratio=0.1)


@pytest.mark.parametrize(
    ("config", "step", "factor"),
    [
        (COSINE, 0, 0.1),
        (COSINE, 4, 0.5),
        (COSINE, 9, 1.0),
        (COSINE, 10, 1.0),
        (COSINE, 60, 0.1 + 0.9 * 0.5),  # half-way between the 10th and the 110th
        (COSINE, 85, 0.1 + 0.9 * 0.14644660940672627),  # (1 + cos 135 degrees) / 2
        (COSINE, 110, 0.1),
        (WSD, 0, 0.1),
        (WSD, 9, 1.0),
        (WSD, 88, 1.0),
        (WSD, 89, 0.1 + 0.9 * 21 / 22),
        (WSD, 99, 0.1 + 0.9 * 0.5),
        (WSD, 110, 0.1),
    ],
)
def test_golden_points_of_a_stage_of_111_steps(config: ScheduleConfig, step: int, factor: float) -> None:
    assert lr_factor(config, step, 111) == pytest.approx(factor, abs=1e-12)


@given(
    kind=st.sampled_from(ScheduleKind),
    warmup=st.integers(0, 30),
    decay=st.floats(0.05, 1.0),
    least=st.floats(0.0, 1.0),
    steps=st.integers(4, 200),
)
def test_rises_then_falls_to_min_ratio(kind: ScheduleKind, warmup: int, decay: float, least: float, steps: int) -> None:
    config = ScheduleConfig(kind, warmup, decay, least)
    factors = [lr_factor(config, step, steps) for step in range(steps)]
    risen = min(warmup, steps // 2)
    assert factors[:risen] == sorted(factors[:risen])
    assert factors[risen:] == sorted(factors[risen:], reverse=True)
    assert factors[-1] == pytest.approx(least)
    assert 0 < max(factors) <= 1 + 1e-12
    assert min(factors) >= 0


@given(kind=st.sampled_from(ScheduleKind), steps=st.integers(1, 3))
def test_tiny_stages_have_a_positive_rate(kind: ScheduleKind, steps: int) -> None:
    config = ScheduleConfig(kind, warmup_steps=100, min_ratio=0.1)
    assert all(0 < lr_factor(config, step, steps) <= 1 for step in range(steps))


def test_flops_per_token_by_hand() -> None:
    model = ModelConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=5,
    )
    projections = 8 * 20 + 8 * 10 + 8 * 10 + 20 * 8  # q, k, v, o
    mlp = 3 * 8 * 20
    matrices = 3 * (projections + mlp) + 100 * 8  # the head, tied or not
    # forward, causal: a query meets (S + 1) / 2 keys, 2 products of 2·5 operations each, in 4 heads of 3 layers
    attention = 3 * 4 * (64 + 1) / 2 * 2 * 2 * 5
    assert flops_per_token(model, 64) == 3 * (2 * matrices + attention)


def test_attention_share_of_an_8b_model_is_the_published_one() -> None:
    """research: 6N a token against 6·layers·length·width, 32k tokens: 34.9 %."""
    model = ModelConfig(
        vocab_size=1,
        hidden_size=4096,
        intermediate_size=1,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    attention = flops_per_token(model, 32768) - flops_per_token(model, 0)
    assert attention / (attention + 6 * 8e9) == pytest.approx(0.349, abs=0.001)
