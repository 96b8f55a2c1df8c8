"""Which problems are drawn: by success rate, by level, without what can be guessed; on any mesh and after a resume."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farside.configs.errors import UserError
from farside.configs.schema import CurriculumConfig, ParallelConfig, RlConfig
from farside.parallel.mesh import ONE_RANK, ParallelDims
from farside.rl.curriculum import Pool, make_curriculum
from farside.rl.guessing import guessable
from farside.rl.rates import Rates
from farside.rl.train import check_curriculum
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.liveness import Pulse
from farside.train.runtime import Runtime, StopRequest
from tests.ranks import Rank, RankPool
from tests.train.models import SMALL, small_config

LEVELS = 3


class Leveled:
    """Problem i is of level i % 3 + 1."""

    name = "leveled"

    def prompt(self, split: str, index: int) -> Prompt:
        return Prompt(index, f"{split} {index}", "", {"difficulty": index % LEVELS + 1})


class Flat(Leveled):
    name = "flat"

    def prompt(self, split: str, index: int) -> Prompt:
        return Prompt(index, f"{split} {index}", "")


def pool(task: Any = None, mesh: Any = ONE_RANK, **settings: Any) -> Pool:
    config = RlConfig(prompts_per_step=4, samples_per_prompt=2, curriculum=CurriculumConfig(pool=30, **settings))
    curriculum = make_curriculum(config, 7, task or Leveled(), mesh)
    assert isinstance(curriculum, Pool)
    return curriculum


def sampled(outcomes: Sequence[tuple[int, Mark]]) -> list[tuple[Completion, Score]]:
    return [
        (
            Completion(Leveled().prompt("train", index), [1], [2], [0.0], "", False, 0),
            Score(float(mark is Mark.correct), mark is not Mark.error, Verdict(mark)),
        )
        for index, mark in outcomes
    ]


def test_without_a_pool_each_problem_comes_once() -> None:
    curriculum = make_curriculum(RlConfig(), 0, Leveled(), ONE_RANK)  # type: ignore[arg-type]
    assert curriculum.choose(100, 8, 4) == [108, 109, 110, 111]
    found = curriculum.note(sampled([(0, Mark.correct), (3, Mark.wrong), (1, Mark.correct), (6, Mark.error)]))
    assert found == {"accuracy_difficulty_1": 0.5, "accuracy_difficulty_2": 1.0}
    assert curriculum.record() == {}


def test_rates_forget() -> None:
    rates = Rates(2)
    rates.add(np.array([4.0, 0.0]), np.array([8.0, 0.0]), 0.5)
    rates.add(np.array([8.0, 0.0]), np.array([8.0, 0.0]), 0.5)
    assert rates.rates()[0] == (0.5 * 4 + 8) / (0.5 * 8 + 8 + 1)
    assert rates.rates(0.25).tolist()[1] == 0.25, "nothing is known: as guessed"


def test_problems_are_drawn_in_proportion_to_one_minus_their_rate() -> None:
    """Problem 0 is always right, 1 every other time, 2 never; the others are as their level."""
    curriculum = pool(prioritised=True, memory=1.0, floor=0.1)
    outcomes = [(0, Mark.correct)] * 99 + [(1, Mark.correct), (1, Mark.wrong)] * 50 + [(2, Mark.wrong)] * 99
    curriculum.note(sampled(outcomes))
    weights = curriculum.weights()
    assert weights[:3] == pytest.approx([0.1, 0.5, 1.0], abs=0.01)
    assert weights[3:6] == pytest.approx([0.1, 0.5, 1.0], abs=0.01), "what was never tried"
    first = Counter(curriculum.choose(step, 0, 1)[0] % LEVELS for step in range(3000))
    assert [first[level] / 3000 for level in range(LEVELS)] == pytest.approx([0.1 / 1.6, 0.5 / 1.6, 1 / 1.6], abs=0.03)


def test_a_draw_is_a_function_of_seed_and_place_and_repeats_no_problem() -> None:
    one, other = pool(prioritised=True), pool(prioritised=True)
    chosen = one.choose(40, 0, 12)
    assert len(set(chosen)) == 12
    assert [other.choose(40, drawn, 4) for drawn in (8, 0, 4)] == [chosen[8:], chosen[:4], chosen[4:8]]
    assert one.choose(44, 0, 12) != chosen
    uniform = Counter(index for step in range(2000) for index in pool().choose(step, 0, 3))
    assert max(abs(uniform[index] / 6000 - 1 / 30) for index in range(30)) < 0.01


def test_levels_open_one_after_the_other() -> None:
    curriculum = pool(unlock_at=0.75)
    assert {index % LEVELS for index in curriculum.choose(0, 0, 4)} == {0}
    few = [(0, Mark.correct)] * 3
    assert curriculum.note(sampled(few))["unlocked_levels"] == 1, "3 samples are too few"
    assert curriculum.note(sampled([(0, Mark.correct)] * 20))["unlocked_levels"] == 2
    assert {index % LEVELS for index in curriculum.choose(0, 0, 8)} == {0, 1}
    for _ in range(3):
        assert curriculum.note(sampled([(0, Mark.correct)] * 20))["unlocked_levels"] == 2, (
            "the easy level tells nothing"
        )
    assert curriculum.note(sampled([(1, Mark.correct)] * 20 + [(4, Mark.wrong)] * 20))["unlocked_levels"] == 2
    assert curriculum.note(sampled([(1, Mark.correct)] * 40))["unlocked_levels"] == 3
    assert curriculum.note(sampled([(2, Mark.correct)] * 40))["unlocked_levels"] == 3


def test_a_level_without_a_miss_opens_the_next_whatever_is_asked() -> None:
    """Of few samples, too: 8 right of 8 is 1, not 8 of 9."""
    curriculum = pool(unlock_at=1.0)
    assert curriculum.note(sampled([(0, Mark.correct)] * 8))["unlocked_levels"] == 2
    other = pool(unlock_at=1.0)
    assert other.note(sampled([(0, Mark.correct)] * 200 + [(0, Mark.wrong)]))["unlocked_levels"] == 1


def test_a_resumed_one_goes_on_alike() -> None:
    settings = {"prioritised": True, "unlock_at": 0.5}
    one, other = pool(**settings), pool(**settings)
    one.leave_out([0, 3])
    draw = np.random.default_rng(0)
    for step in range(6):
        marks = [(Mark.correct, Mark.wrong, Mark.error)[draw.integers(3)] for _ in range(8)]
        one.note(sampled(list(zip(np.repeat(one.choose(step, 0, 4), 2).tolist(), marks))))
        if step == 3:
            other.restore(json.loads(json.dumps(one.record())))
        elif step > 3:
            other.note(sampled(list(zip(np.repeat(other.choose(step, 0, 4), 2).tolist(), marks))))
    assert other.record() == one.record()
    assert other.choose(9, 0, 8) == one.choose(9, 0, 8)
    fresh = pool(**settings)
    fresh.restore({})
    assert fresh.record() == pool(**settings).record()


def after_notes(place: Rank, layout: ParallelConfig) -> tuple[dict[str, Any], list[int], dict[str, float]]:
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    curriculum = pool(mesh=mesh, prioritised=True, unlock_at=0.1)
    told = {}
    for step in range(4):
        chosen = curriculum.choose(4 * step, 0, 4)
        share = 4 // mesh.dp_size
        outcomes = [(index, (Mark.correct, Mark.wrong)[index % 2]) for index in chosen for _ in range(2)]
        told = curriculum.note(sampled(outcomes)[mesh.dp_rank * share * 2 :][: share * 2])
    return curriculum.record(), curriculum.choose(99, 0, 8), told


def test_every_mesh_draws_the_same(ranks: RankPool) -> None:
    wanted = after_notes(Rank(0, 1), ParallelConfig())
    for layout in (ParallelConfig(dp_shard=2), ParallelConfig(tp=2)):
        for found in ranks.run(after_notes, 2, layout):
            assert found == wanted


class Guesser:
    """The tries of which it gets right are the problem's number."""

    def generate(
        self, prompts: list[Prompt], samples: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        assert {prompt.begun for prompt in prompts} == {"<think></think>"}
        return [
            Completion(prompt, [1], [2], [0.0], str(prompt.index == number), False, 0)
            for prompt in prompts
            for number in range(samples)
        ]


class Trusting:
    """Its own verifier: right is what says so."""

    @property
    def verifier(self) -> "Trusting":
        return self

    def verify(self, items: list[tuple[Prompt, str]]) -> list[Verdict]:
        return [Verdict(Mark.correct if text == "True" else Mark.wrong) for _, text in items]


def find_guessable(place: Rank, folder: Path) -> list[int]:
    config = small_config(SMALL)
    config.rl.prompts_per_step, config.rl.curriculum = 4, CurriculumConfig(pool=27)
    mesh = ParallelDims.resolve(ParallelConfig(dp_shard=place.world_size), place.world_size).build("cpu")
    stop, pulse = StopRequest([]), Pulse(folder, place.rank, 60.0, 60.0)
    runtime = Runtime(config, mesh, torch.device("cpu"), folder, None, stop, pulse)
    return guessable(runtime, Guesser(), Leveled(), Trusting(), 5)  # type: ignore[arg-type]


def test_what_is_guessed_within_the_tries_is_left_out(ranks: RankPool, tmp_path: Path) -> None:
    for size in (1, 2):
        assert ranks.run(find_guessable, size, tmp_path) == [[0, 1, 2, 3, 4]] * size
    curriculum = pool()
    curriculum.leave_out([0, 1, 2, 3, 4])
    assert set(curriculum.choose(0, 0, 25)) == set(range(5, 30))


def test_a_pool_must_suffice() -> None:
    with pytest.raises(UserError, match=r"rl\.curriculum\.pool = 30: 3 problems can be drawn, but .* need 4"):
        pool().leave_out(range(27))
    with pytest.raises(UserError, match=r"unlock_at: problems of flat have no difficulty"):
        pool(Flat(), unlock_at=0.5)
    assert len(pool(Flat(), prioritised=True).choose(0, 0, 4)) == 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prioritised": True}, r"rl\.curriculum\.prioritised: there is no pool"),
        ({"guess_tries": 8}, r"rl\.curriculum\.guess_tries: there is no pool"),
        ({"pool": 9, "floor": 0.0}, r"rl\.curriculum\.floor = 0\.0"),
        ({"pool": -1}, r"rl\.curriculum\.pool = -1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_curriculum(CurriculumConfig(**settings))
