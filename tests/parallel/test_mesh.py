"""Degrees are checked before anything is built; groups hold the ranks they name."""

import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import ParallelConfig
from farside.parallel import comm
from farside.parallel.mesh import ParallelDims
from tests.ranks import Rank, RankPool


@pytest.mark.parametrize(
    ("degrees", "world", "message"),
    [
        ((2, 2), 2, "dp_replicate·dp_shard = 2·2 = 4, but 2 ranks were started"),
        ((1, 1), 3, "dp_shard = 1, but 3 ranks were started"),
        ((1, 4), 8, "dp_shard = 4, but 8 ranks"),
        ((0, 2), 2, "at least 1"),
        ((2, -1), 2, "at least 1"),
        ((-1, -2), 2, "at least 1"),
    ],
)
def test_wrong_degrees_name_product_and_world_size(degrees: tuple[int, int], world: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ParallelDims.resolve(ParallelConfig(*degrees), world)
    assert "\n" not in str(error.value)


def test_one_rank_needs_no_group() -> None:
    mesh = ParallelDims.resolve(ParallelConfig(), 1).build("cpu")
    assert (mesh.device_mesh, mesh.dp, mesh.world, mesh.dp_rank, mesh.dp_size) == (None, None, None, 0, 1)


def groups(place: Rank, replicate: int, shard: int) -> tuple[int, list[int], list[int]]:
    mesh = ParallelDims.resolve(ParallelConfig(replicate, shard), place.world_size).build("cpu")
    return mesh.dp_rank, comm.gather_objects(place.rank, mesh.dp), comm.gather_objects(place.rank, mesh.fsdp)


@pytest.mark.parametrize("degrees", [(2, 2), (1, 4), (4, 1)])
def test_groups_hold_the_ranks_they_name(ranks: RankPool, degrees: tuple[int, int]) -> None:
    replicate, shard = degrees
    for rank, (dp_rank, dp, dp_shard) in enumerate(ranks.run(groups, 4, replicate, shard)):
        assert dp_rank == rank
        assert dp == [0, 1, 2, 3]
        assert dp_shard == [rank // shard * shard + other for other in range(shard)]


def collectives(place: Rank) -> list[object]:
    mesh = ParallelDims.resolve(ParallelConfig(1, place.world_size), place.world_size).build("cpu")
    mine = torch.full((2, 3), float(place.rank))
    return [
        comm.all_gather(mine, mesh.dp)[:, 0].tolist(),
        comm.sum_floats([place.rank + 0.5, 1e17, 1.0], mesh.dp, torch.device("cpu")),
        comm.broadcast_object({"from": place.rank}, mesh.dp),
        comm.sum_(mine.clone(), mesh.dp)[0, 0].item(),
    ]


def test_collectives_mean_the_same_on_one_rank_and_many(ranks: RankPool) -> None:
    assert ranks.run(collectives, 1) == [[[0.0, 0.0], [0.5, 1e17, 1.0], {"from": 0}, 0.0]]
    expected = [[0.0, 0.0, 1.0, 1.0, 2.0, 2.0], [4.5, 3e17, 3.0], {"from": 0}, 3.0]
    assert ranks.run(collectives, 3) == [expected] * 3
