"""Loops of tokens: found at the same token by the slow definition and while decoding, which then ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.configs.schema import RepetitionConfig
from farside.train.inference.generate import generate
from farside.train.inference.repetition import LoopDetector, ends_in_loop
from tests.train.models import random_model


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2, 1, 2, 1, 2, 1, 2], True),
        ([9, 1, 2, 1, 2, 1, 2, 1, 2], True),
        ([1, 2, 1, 2, 1, 2, 1], False),  # three times and a half
        ([1, 2, 1, 2, 1, 2, 1, 2, 3], False),  # it got out of it
        ([5] * 7, False),  # four times, but too short to be sure
        ([5] * 8, True),
        ([1, 2, 3, 4] * 4, False),  # a longer stretch than is looked for
        ([], False),
    ],
)
def test_loops(tokens: list[int], loops: bool) -> None:
    assert ends_in_loop(tokens, RepetitionConfig(3, repeats=4, least_tokens=8)) is loops


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=12, max_size=12), min_size=1, max_size=4),
    longest=st.integers(1, 4),
    repeats=st.integers(2, 4),
    least=st.integers(0, 8),
)
def test_token_by_token_as_by_definition(rows: list[list[int]], longest: int, repeats: int, least: int) -> None:
    config = RepetitionConfig(longest, repeats, least)
    detector, kept, begun = LoopDetector(config), list(range(len(rows))), dict.fromkeys(range(len(rows)), 0)
    detector.enter(len(rows))
    for end in range(1, 13):
        found = detector.step(torch.tensor([rows[row][end - 1] for row in kept]))
        assert found.tolist() == [ends_in_loop(rows[row][begun[row] : end], config) for row in kept]
        if end == 6 and len(kept) > 1:  # one leaves, the others change places, and it begins anew behind them
            kept = [*kept[:0:-1], kept[0]]
            begun[kept[-1]] = end
            detector.select(torch.arange(len(kept) - 1, 0, -1))
            detector.enter(1)


def test_decoding_ends_with_the_loop() -> None:
    """What comes before is what comes without looking for loops, of every row, whoever leaves first."""
    model, config = random_model(seed=1), RepetitionConfig(8, repeats=2, least_tokens=6)
    uniforms = torch.rand(3, 4, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompts = [[3, 4], [5], [6, 7, 8]]
    whole = generate(model, prompts, 40, 36, uniforms, temperature=0.05)
    cut = generate(model, prompts, 40, 36, uniforms, temperature=0.05, repetition=config)
    ends = []
    for one, other in zip(whole, cut):
        count = len(one.tokens)
        ends.append(next((end for end in range(1, count + 1) if ends_in_loop(one.tokens[:end], config)), count))
        assert other.tokens == one.tokens[: ends[-1]]
        assert other.logprobs == pytest.approx(one.logprobs[: ends[-1]], abs=1e-6)
        assert other.truncated is (other.tokens[-1] != 36)
    lengths = [len(one.tokens) for one in whole]
    assert ends != lengths
    assert len(set(ends)) > 2, "rows leave at different times"
