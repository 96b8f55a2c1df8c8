"""A slow rank is told from those that wait for it."""

import time

import pytest
import torch
import torch.distributed as dist

from farside.parallel import comm
from farside.train.stragglers import OwnTime, Stragglers, warning
from tests.ranks import Rank, RankPool


def steps(place: Rank, slow: int, seconds: float) -> dict[str, float]:
    """Twenty steps of a millisecond or so, and one rank that sleeps longer in each."""
    stragglers = Stragglers(20, dist.group.WORLD, torch.device("cpu"))
    found: dict[str, float] = {}
    for step in range(1, 21):
        time.sleep(seconds if place.rank == slow else 0.005)
        comm.sum_(torch.ones(4), dist.group.WORLD)
        found = stragglers.compare(step) or found
    stragglers.close()
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("slow", [0, 1])
def test_the_slow_rank_is_named(ranks: RankPool, slow: int) -> None:
    found = ranks.run(steps, 2, slow, 0.06)
    assert found[0]["slowest_rank"] == found[1]["slowest_rank"] == slow
    assert found[0]["slowest_score"] == found[1]["slowest_score"]
    assert found[0]["slowest_score"] < 0.6
    assert found[0]["slowest_own_share"] > 0.8
    line = warning(found[0])
    assert line is not None
    assert f"rank {slow} is slow: score 0." in line


def test_equal_ranks_are_not_accused(ranks: RankPool) -> None:
    found = ranks.run(steps, 2, 2, 0.0)[0]  # too short to say anything
    assert found == {}
    assert warning(found) is None
    assert warning({"slowest_rank": 1, "slowest_score": 0.61}) is None


def test_alone_there_is_nothing_to_compare() -> None:
    stragglers = Stragglers(1, None, torch.device("cpu"))
    assert stragglers.compare(1) == {}
    stragglers.close()


def test_own_time_is_all_time_without_waits() -> None:
    own = OwnTime()
    time.sleep(0.1)
    mine, seconds = own.take()
    assert mine == seconds >= 0.1
    own.close()
