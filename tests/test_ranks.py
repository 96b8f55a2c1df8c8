"""The pool of ranks itself: results in order, failures named, fresh after a failure."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from farside.parallel.mesh import ParallelDims
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


def shard(place: Rank) -> int:
    """Groups in every way that has kept them: a mesh, and DTensors cached by it."""
    mesh = ParallelDims(dp_shard=2).build("cpu")
    assert mesh.device_mesh is not None
    halves = distribute_tensor(torch.ones(4, 2), mesh.device_mesh["fsdp"], [Shard(0)])
    return int((halves + 1).redistribute(placements=[Replicate()]).to_local().sum())


def threads(place: Rank) -> int:
    return len(os.listdir("/proc/self/task"))


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


def test_a_call_leaves_no_threads_behind() -> None:
    pool = RankPool(2)
    try:
        assert pool.run(shard, 2) == [16, 16]
        before = pool.run(threads, 1)
        for _ in range(3):
            assert pool.run(shard, 2) == [16, 16]
        assert pool.run(threads, 1) == before
        assert before[0] <= 2, "of the first call's groups something still lives"
    finally:
        pool.close()
