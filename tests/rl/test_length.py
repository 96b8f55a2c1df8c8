"""The length reward: golden values, groups that say nothing, where it enters the reward."""

from dataclasses import replace

import pytest
import torch

from farside.configs.schema import LengthConfig, RepetitionConfig, RlConfig
from farside.rl.length import length_rewards
from farside.rl.shaping import shaped
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict


def rewards(lengths: list[int], correct: list[int], valid: list[int] | None = None) -> list[float]:
    flags = lambda values: torch.tensor([values], dtype=torch.bool)  # noqa: E731
    return length_rewards(torch.tensor([lengths]), flags(correct), flags(valid or [1] * len(lengths)))[0].tolist()


@pytest.mark.parametrize(
    ("lengths", "correct", "golden"),
    [
        ([10, 20, 30, 40], [1, 0, 1, 0], [0.5, 0, -1 / 6, -0.5]),
        ([40, 10], [1, 1], [-0.5, 0.5]),
        ([10, 40], [0, 1], [0, -0.5]),  # wrong and short gains nothing
        ([7, 7, 7], [1, 0, 1], [0, 0, 0]),
    ],
)
def test_golden_length_reward(lengths: list[int], correct: list[int], golden: list[float]) -> None:
    assert rewards(lengths, correct) == pytest.approx(golden, rel=0, abs=1e-12)


def test_what_is_not_valid_is_no_shortest_and_no_longest() -> None:
    found = rewards([1, 10, 20, 99], [0, 1, 1, 1], [0, 1, 1, 0])
    assert found == [0, 0.5, -0.5, 0]
    assert rewards([1, 10], [1, 1], [0, 1]) == [0, 0]
    assert rewards([1, 10], [1, 1], [0, 0]) == [0, 0]


def samples(lengths: list[int], correct: list[int], tokens: int = -1) -> tuple[list[Completion], list[Score]]:
    """tokens: which one all consist of; -1: none comes twice."""
    items = [
        Completion(Prompt(0, "", ""), [1], [*range(n)] if tokens < 0 else [tokens] * n, [0.0] * n, "", False, 0)
        for n in lengths
    ]
    marks = [Mark.correct if right else Mark.wrong for right in correct]
    return items, [Score(float(mark is Mark.correct), True, Verdict(mark)) for mark in marks]


def test_lengths_are_compared_within_a_prompt_and_after_the_warmup() -> None:
    """Long answers to a hard problem are not set against short ones to an easy problem."""
    config = RlConfig(samples_per_prompt=2, length=LengthConfig(weight=0.4, warmup_steps=3))
    items, scores = samples([2, 4, 20, 10], [1, 1, 1, 0])
    assert shaped(items, scores, config, 2) == scores
    found = [score.reward for score in shaped(items, scores, config, 3)]
    assert found == pytest.approx([1.2, 0.8, 0.8, 0.0], rel=0, abs=1e-12)
    masked = [replace(score, valid=number != 1) for number, score in enumerate(scores)]
    assert [score.reward for score in shaped(items, masked, config, 3)][:2] == [1, 1]


def test_a_loop_costs_its_penalty() -> None:
    config = RlConfig(samples_per_prompt=2, repetition=RepetitionConfig(3, 4, 6, penalty=0.25))
    items, scores = samples([5, 6], [1, 1], tokens=7)
    assert [score.reward for score in shaped(items, scores, config, 0)] == [1, 0.75]
    off = replace(config, repetition=replace(config.repetition, longest_period=0))
    assert shaped(items, scores, off, 0) == scores
