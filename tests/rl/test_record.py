"""The digest of an iteration's samples: one number on every mesh, another one for other samples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from farside.configs.schema import ParallelConfig
from farside.parallel.mesh import ParallelDims
from farside.rl.record import samples_digest
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.liveness import Pulse
from farside.train.runtime import Runtime, StopRequest
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, small_config

Sample = tuple[Completion, Score]


def samples() -> list[Sample]:
    items = [
        Completion(Prompt(50 + n // 2, "", ""), [1], [n, 7, 9][: 2 + n % 2], [-0.5] * (2 + n % 2), "", False, 4)
        for n in range(8)
    ]
    return [(item, Score(1.0, True, Verdict(Mark.correct))) for item in items]


def digest(place: Rank, folder: Path, layout: ParallelConfig, mine: list[Sample]) -> int:
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    config = replace(small_config(SMALL), parallel=layout)
    stop, pulse = StopRequest([], signals=[]), Pulse(folder, place.rank, 60.0, 60.0)
    runtime = Runtime(config, mesh, torch.device("cpu"), folder, None, stop, pulse)
    share = len(mine) // mesh.dp_size
    return samples_digest(runtime, mine[mesh.dp_rank * share :][:share])


def test_one_number_on_every_mesh(ranks: RankPool, tmp_path: Path) -> None:
    alone = digest(Rank(0, 1), tmp_path, ParallelConfig(), samples())
    for layout in (ParallelConfig(dp_shard=2), ParallelConfig(tp=2)):
        assert ranks.run(digest, 2, tmp_path, layout, samples()) == [alone, alone]


@pytest.mark.parametrize(
    "change",
    [
        lambda all_: [all_[1], all_[0], *all_[2:]],
        lambda all_: [all_[0], all_[0], *all_[2:]],
        lambda all_: all_[:-1],
        lambda all_: [(replace(all_[0][0], tokens=[0, 8]), all_[0][1]), *all_[1:]],
        lambda all_: [(replace(all_[0][0], policy_step=3), all_[0][1]), *all_[1:]],
        lambda all_: [(all_[0][0], replace(all_[0][1], verdict=Verdict(Mark.wrong))), *all_[1:]],
    ],
    ids=["swapped", "repeated", "lost", "token", "policy", "verdict"],
)
def test_another_number_for_other_samples(tmp_path: Path, change: Callable[[list[Sample]], list[Sample]]) -> None:
    place, layout = Rank(0, 1), ParallelConfig()
    assert digest(place, tmp_path, layout, change(samples())) != digest(place, tmp_path, layout, samples())
