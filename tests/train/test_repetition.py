"""Loops of tokens: found at the same token by the slow definition and while decoding, which then ends."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farside.configs.schema import RepetitionConfig
from farside.train.inference.decoder import Decoder
from farside.train.inference.generate import Request, decode
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
    begun=st.integers(0, 9),
)
def test_token_by_token_as_by_definition(
    rows: list[list[int]], longest: int, repeats: int, least: int, begun: int
) -> None:
    """begun: how many tokens a row already has when it enters."""
    config = RepetitionConfig(longest, repeats, least)
    detector, kept = LoopDetector(config), list(rows)
    detector.enter([row[:begun] for row in kept])
    for end in range(begun, 12):
        found = detector.step(torch.tensor([row[end] for row in kept]))
        assert found == [ends_in_loop(row[: end + 1], config) for row in kept]
        if end == 6 and len(kept) > 1:  # the first leaves, the others change places, and another one enters
            kept = [*kept[:0:-1], kept[0][::-1]]
            detector.select(range(len(kept) - 1, 0, -1))
            detector.enter([kept[-1][:7]])


def test_decoding_ends_with_the_loop() -> None:
    """What comes before is what comes without looking for loops, of every answer, however few slots there are and
    whether or not the answer had begun before."""
    decoder, config = Decoder.of(random_model(seed=1)), RepetitionConfig(8, repeats=2, least_tokens=6)
    draws = np.random.default_rng(0).random((3, 4, 40))
    requests = [Request(prompt, 40, draws[n, m]) for n, prompt in enumerate(([3, 4], [5], [6, 7, 8])) for m in range(4)]
    whole = decode(decoder, requests, 36, 0.05).answers
    ends = []
    for slots in (None, 3):
        cut = decode(decoder, requests, 36, 0.05, slots, config).answers
        for request, one, other in zip(requests, whole, cut):
            count = len(one.tokens)
            end = next((end for end in range(1, count + 1) if ends_in_loop(one.tokens[:end], config)), count)
            assert other.tokens == one.tokens[:end]
            assert other.logprobs == pytest.approx(one.logprobs[:end], abs=1e-6)
            assert other.truncated is (other.tokens[-1] != 36)
            ends.append(end)
            if end > 5:
                later = Request(request.prefix + one.tokens[:5], 35, request.draws[5:], begun=5)
                assert decode(decoder, [later], 36, 0.05, slots, config).answers[0].tokens == one.tokens[5:end]
    assert ends[: len(whole)] != [len(one.tokens) for one in whole]
    assert len(set(ends)) > 2, "answers leave at different times"
