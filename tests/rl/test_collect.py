"""Which groups an iteration learns from: alike on every mesh, and one verdict where ranks share samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farside.configs.schema import ParallelConfig
from farside.parallel.mesh import ParallelDims
from farside.rl.collect import Collected, Collector
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.liveness import Pulse
from farside.train.runtime import Runtime
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, small_config

PROMPTS, SAMPLES = 4, 3


class Problems:
    def prompt(self, split: str, index: int) -> Prompt:
        return Prompt(index, f"{split} {index}", "")


class Echo:
    """Answers are numbered; none is sampled."""

    def generate(
        self, prompts: list[Prompt], samples: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        return [
            Completion(prompt, [1], [2, 3], [0.0, 0.0], f"{prompt.question}: {number}", False, 0)
            for prompt in prompts
            for number in range(samples)
        ]


@dataclass
class Every:
    """Of every ``period``-th problem one answer is right, so that its group teaches. doubt: which rank gives its own
    reward, as one would whose verifier ran out of time."""

    period: int
    doubt: float = 0.0
    last_error: str = ""

    def score(self, completions: Sequence[Completion]) -> list[Score]:
        marks = [
            Mark.correct if item.prompt.index % self.period == 0 and item.text.endswith(" 0") else Mark.wrong
            for item in completions
        ]
        return [Score(float(mark is Mark.correct) + self.doubt, True, Verdict(mark)) for mark in marks]


def collect(
    place: Rank, folder: Path, layout: ParallelConfig, rounds: int, period: int, doubtful: bool = False
) -> Collected:
    config = replace(small_config(SMALL), parallel=layout)
    config.rl.prompts_per_step, config.rl.samples_per_prompt, config.rl.sampling_rounds = PROMPTS, SAMPLES, rounds
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    nothing: Any = None
    runtime = Runtime(config, mesh, torch.device("cpu"), folder, None, nothing, Pulse(folder, place.rank, 60.0, 60.0))
    task, reward = Problems(), Every(period, float(place.rank) if doubtful else 0.0)
    collector = Collector(runtime, Echo(), task, reward)  # type: ignore[arg-type]
    return collector.collect(0, 100)


def chosen(parts: list[Collected]) -> list[int]:
    """Problems of all ranks' groups."""
    return [group[0][0].prompt.index for part in parts for group in part.groups]


@pytest.mark.parametrize(
    ("rounds", "period", "wanted", "problems"),
    [
        (1, 3, [100, 101, 102, 103], 4),
        (3, 3, [102, 105, 108, 111], 12),
        (9, 2, [100, 102, 104, 106], 8),
        # too few teach: filled up with the first that do not
        (2, 5, [100, 105, 101, 102], 8),
    ],
)
def test_the_first_groups_that_teach_whatever_the_mesh(
    ranks: RankPool, tmp_path: Path, rounds: int, period: int, wanted: list[int], problems: int
) -> None:
    for layout in (ParallelConfig(), ParallelConfig(dp_shard=2), ParallelConfig(dp_replicate=2)):
        found = ranks.run(collect, layout.ranks, tmp_path, layout, rounds, period)
        assert chosen(found) == wanted
        assert {part.problems for part in found} == {problems}
        assert sum(len(part.sampled) for part in found) == problems * SAMPLES, "metrics see what was dropped too"


@pytest.mark.parametrize("layout", [ParallelConfig(tp=2), ParallelConfig(cp=2), ParallelConfig(pp=2)])
def test_ranks_that_share_samples_share_the_verdict(ranks: RankPool, tmp_path: Path, layout: ParallelConfig) -> None:
    one, other = ranks.run(collect, 2, tmp_path, layout, 1, 2, True)
    assert other.scores == one.scores
    assert other.completions == one.completions
