"""Every context-parallel kind and layout equals one process: values and gradients, in fp64, on gloo ranks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parallel.contexts import Case, Errors, measure_cases
from tests.ranks import RankPool

KINDS = ("ring", "allgather", "ulysses", "hybrid")
LAYOUTS = ("contiguous", "zigzag", "balanced", "fine")
ROWS = {
    "one document": ((48,), (48,)),
    "odd documents": ((1, 7, 13, 3, 19, 5), (17, 31)),
    "padding over whole ranks": ((11, -37), (-48,)),
    "padding between": ((-3, 20, -5, 20), (48,)),
    "unequal": ((47, 1), (1,) * 48),
}
HEADS = ((4, 4), (4, 1), (4, 2), (12, 6))
FORWARD, GRADIENT = 1e-12, 1e-10


def check(cases: list[Case], by_rank: list[list[Errors]], forward: float = FORWARD, gradient: float = GRADIENT) -> None:
    for results in by_rank:
        for case, errors in zip(cases, results, strict=True):
            assert errors.relative[0] <= forward, (case, errors)  # NaN fails
            assert all(error <= gradient for error in errors.relative[1:]), (case, errors)
            assert not errors.dirty, (case, errors)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_kind_and_layout_equals_the_reference(ranks: RankPool, world_size: int) -> None:
    cases = [
        Case(kind, layout, rows, *HEADS[number % len(HEADS)])
        for kind in KINDS
        for layout in LAYOUTS
        for number, rows in enumerate(ROWS.values())
    ]
    check(cases, ranks.run(measure_cases, world_size, cases))


@pytest.mark.parametrize("heads", HEADS)
def test_every_kind_takes_every_head_count(ranks: RankPool, heads: tuple[int, int]) -> None:
    cases = [Case(kind, "zigzag", ROWS["odd documents"], *heads) for kind in KINDS]
    check(cases, ranks.run(measure_cases, 4, cases))


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    """Any lengths, padding and heads that divide on four ranks."""
    size = 8 * draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row, left = [], size
        while left:
            length = draw(st.integers(1, left))
            row.append(-length if draw(st.integers(0, 4)) == 0 else length)
            left -= length
        rows.append(tuple(row))
    kv_heads = draw(st.sampled_from([1, 2, 3, 4]))
    heads = kv_heads * draw(st.sampled_from([4, 8] if kv_heads % 2 else [4, 6] if kv_heads == 2 else [1, 2]))
    kind, layout = draw(st.sampled_from(KINDS)), draw(st.sampled_from(LAYOUTS))
    return Case(kind, layout, tuple(rows), heads, kv_heads, draw(st.sampled_from([1, 3, 8])))


@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases=st.lists(any_case(), min_size=30, max_size=30))
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_documents_lengths_and_heads(ranks: RankPool, world_size: int, cases: list[Case]) -> None:
    check(cases, ranks.run(measure_cases, world_size, cases))


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases=st.lists(any_case(), min_size=40, max_size=40))
def test_any_documents_lengths_and_heads_at_length(ranks: RankPool, cases: list[Case]) -> None:
    check(cases, ranks.run(measure_cases, 4, cases))


BOUNDS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (0.01, 0.02)}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_lower_precision_stays_within_its_bounds(ranks: RankPool, dtype: torch.dtype) -> None:
    cases = [Case(kind, "zigzag", ROWS["odd documents"], dtype=dtype) for kind in KINDS]
    check(cases, ranks.run(measure_cases, 4, cases), *BOUNDS[dtype])
