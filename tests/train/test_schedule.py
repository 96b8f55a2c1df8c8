"""Learning rates at golden points and at the ends, and the operation count by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farside.configs.schema import ScheduleConfig, ScheduleKind
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
