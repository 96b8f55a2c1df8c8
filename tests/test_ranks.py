"""The pool of ranks itself: results in order, failures named, fresh after a failure."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import Rank, RankError, RankPool


def total(place: Rank, offset: int) -> tuple[int, int, int]:
    value = torch.tensor([place.rank + offset])
    if place.world_size > 1:
        dist.all_reduce(value)
    return place.rank, int(value), torch.get_num_threads()


def fail(place: Rank) -> None:
    if place.rank == 1:
        raise ValueError("broken on purpose")
    dist.barrier()


def die(place: Rank) -> None:
    if place.rank == 1:
        os._exit(3)
    dist.barrier()


def hang(place: Rank) -> None:
    if place.rank == 1:
        time.sleep(60)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_results_come_in_rank_order(ranks: RankPool, size: int) -> None:
    expected = sum(range(size)) + 10 * size
    for _ in range(2):
        assert ranks.run(total, size, 10) == [(rank, expected, 1) for rank in range(size)]


def test_a_failing_rank_is_named_and_the_pool_recovers() -> None:
    pool = RankPool(2)
    try:
        with pytest.raises(RankError, match=r"rank 1 raised\n(?s:.*)ValueError: broken on purpose"):
            pool.run(fail, 2)
        with pytest.raises(RankError, match="rank 1 died"):
            pool.run(die, 2)
        with pytest.raises(RankError, match=r"hang: ranks .*1\] gave no answer within 1 s"):
            pool.run(hang, 2, deadline=1.0)
        assert pool.run(total, 2, 0) == [(0, 1, 1), (1, 1, 1)]
    finally:
        pool.close()
