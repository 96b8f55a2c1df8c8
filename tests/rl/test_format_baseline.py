"""The format-only classifier finds format, and only format."""

import numpy as np
import pytest

from farside.configs.schema import TaskConfig
from farside.rl.reward.format_baseline import (
    FEATURES,
    L2,
    Pair,
    differences,
    features,
    fit,
    pairwise_accuracy,
)
from farside.rl.tasks.registry import make_task
from farside.rl.types import Completion, Prompt

TASK = make_task(TaskConfig(digits=3))


def test_features_by_hand() -> None:
    text = "<think>7+8=15 3+4+1=8</think>85<|end|>"
    got = dict(zip(FEATURES, features(text)))
    assert got == {
        "length": len(text),
        "has_think": 1,
        "scratch_length": 14,
        "answer_length": 2,
        "digits": 10,
        "plus": 3,
        "equals": 2,
        "truncated": 0,
    }


def test_features_of_a_completion_count_tokens_and_take_its_truncation() -> None:
    completion = Completion(Prompt(0, "1+1=?", "2"), [1], [4, 5, 6], [0.0] * 3, "<think>1", True, 0)
    got = dict(zip(FEATURES, features(completion)))
    assert (got["length"], got["truncated"], got["answer_length"], got["scratch_length"]) == (3, 1, 0, 1)


@pytest.mark.parametrize("hostile", ["", "<|end|>", "</think>" * 3, "\0", "٣+٤", "<think>" * 1000])
def test_features_of_anything_are_finite(hostile: str) -> None:
    assert np.isfinite(features(hostile)).all()
    assert features(hostile).shape == (len(FEATURES),)


def test_features_do_not_see_which_digits_stand_where() -> None:
    right = "<think>7+8=15 3+4+1=8</think>85<|end|>"
    assert (features(right) == features("<think>0+0=99 9+9+9=0</think>11<|end|>")).all()


def pairs(count: int, wrong_by_format: bool) -> list[Pair]:
    result: list[Pair] = []
    for i in range(count):
        prompt = TASK.prompt("train", i)
        right = TASK.trace(prompt, 1)
        if wrong_by_format:
            result.append((right, right.removesuffix("<|end|>")))
        else:  # another last digit: same lengths, same counts
            digit = right[-8]
            result.append((right, f"{right[:-8]}{(int(digit) + 1) % 10}<|end|>"))
    return result


def test_format_tells_format_errors_but_not_arithmetic() -> None:
    assert pairwise_accuracy(pairs(100, True), pairs(300, True)[100:]) == 1.0
    assert pairwise_accuracy(pairs(100, False), pairs(300, False)[100:]) == 0.5


def test_a_noisy_tendency_is_found_and_generalises() -> None:
    draw = np.random.default_rng(0)

    def noisy(count: int) -> list[Pair]:
        lengths = draw.integers(5, 60, size=(count, 2))
        lengths.sort(axis=1)
        flips = draw.random(count) < 0.2  # the longer one is wrong in 80 of 100 pairs
        texts = [("1" * a + "<|end|>", "1" * b + "<|end|>") for a, b in lengths]
        return [pair[::-1] if flip else pair for pair, flip in zip(texts, flips)]

    accuracy = pairwise_accuracy(noisy(400), noisy(1000))
    assert 0.74 < accuracy < 0.86


def test_fit_is_the_minimum_and_deterministic() -> None:
    difference_NF = np.random.default_rng(1).normal(size=(200, 8)) + 0.3
    w_F = fit(difference_NF)
    assert (w_F == fit(difference_NF)).all()
    scale_F = np.sqrt((difference_NF**2).mean(0))

    def loss(w: np.ndarray) -> float:
        scaled = w * scale_F
        return float(np.logaddexp(0, -(difference_NF @ w)).mean() + L2 / 2 * scaled @ scaled)

    for axis in range(8):
        for step in (-1e-3, 1e-3):
            assert loss(w_F + step * np.eye(8)[axis]) > loss(w_F)


def test_swapping_a_pair_flips_its_score() -> None:
    train = pairs(50, True)
    test = [(wrong, right) for right, wrong in train]
    np.testing.assert_array_equal(differences(test), -differences(train))
    assert pairwise_accuracy(train, test) == 0.0


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 and 0"):
        pairwise_accuracy([], [])
