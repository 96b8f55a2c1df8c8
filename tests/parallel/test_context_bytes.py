"""Bytes that each rank sends, counted, equal the formula of the kind; so does the attention work per rank."""

import pytest
import torch

from farside.parallel import comm
from farside.parallel.context.build import KINDS
from tests.parallel.contexts import Case, documents, make_context, measure_bytes
from tests.ranks import Rank, RankPool

ROWS = ((5, 27), (32,), (-32,))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_bytes_sent_equal_the_formula(ranks: RankPool, world_size: int) -> None:
    """With grouped heads, repeated key/value heads, and gradients that travel in fp32 beside bf16 inputs."""
    cases = [
        Case(kind, "zigzag", ROWS, *heads, dtype=dtype)
        for kind in KINDS
        for heads in ((4, 4), (4, 1), (12, 6))
        for dtype in (torch.float64, torch.bfloat16)
    ]
    for results in ranks.run(measure_bytes, world_size, cases):
        for case, (measured, formula) in zip(cases, results, strict=True):
            assert measured == formula, case
            assert all(formula) == (world_size > 1)


def test_golden_bytes() -> None:
    """Written out: 2 ranks, one row of 8 tokens, 4 heads on 2 key/value heads of 16, bf16."""
    from farside.parallel.context import allgather, ring, ulysses

    kv = 2 * 4 * 2 * 16 * 2  # keys and values · local tokens · heads · dim · bytes
    assert ring.bytes_sent(1, 4, 2, 16, 2, torch.bfloat16) == ({"shift": kv}, {"shift": kv + 2 * kv})
    gathered = ({"all_gather": kv}, {"all_gather": kv, "reduce_scatter": 2 * kv})
    assert allgather.bytes_sent(1, 4, 2, 16, 2, torch.bfloat16) == gathered
    half_of_everything = (4 + 4 + 2 + 2) * 4 * 16 * 2 // 2  # q, out, k, v; one half stays
    exchanged = {"all_to_all": half_of_everything}
    assert ulysses.bytes_sent(1, 4, 4, 2, 16, 2, torch.bfloat16) == (exchanged, exchanged)


def count_nested(place: Rank) -> tuple[dict, dict, dict]:
    group = torch.distributed.group.WORLD
    with comm.count_bytes() as outer:
        comm.all_gather(torch.zeros(3), group)
        with comm.count_bytes() as inner:
            comm.all_gather(torch.zeros(5), group)
    with comm.count_bytes() as idle:
        pass
    comm.all_gather(torch.zeros(7), group)
    return dict(outer), dict(inner), dict(idle)


def test_counters_see_what_happens_inside_them_only(ranks: RankPool) -> None:
    assert ranks.run(count_nested, 2) == [({"all_gather": 32}, {"all_gather": 20}, {})] * 2


def works(place: Rank, cases: list[Case]) -> list[list[float]]:
    return [make_context(case, place.world_size).work(documents(case.rows)).tolist() for case in cases]


def test_attention_work_is_the_same_in_sum_and_divided_by_the_layout(ranks: RankPool) -> None:
    """Ulysses and the groups of a hybrid divide it by heads, so evenly."""
    cases = [Case(kind, "contiguous", ((32,),)) for kind in KINDS]
    found = ranks.run(works, 4, cases)
    by_query = [36, 100, 164, 228]
    assert found == [[by_query, by_query, [132] * 4, [68, 68, 196, 196]]] * 4
    assert ranks.run(works, 1, cases) == [[[528]] * 4]
