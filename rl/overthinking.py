"""How much of an answer was thought after it was already right.

Outcome efficiency (Chen et al., "Do NOT think that much for 2+3=?", arXiv 2412.21187, section 2.3): tokens up to the
first right answer in it over all its tokens, 1 for one that stops when it knows, 0 for one that is never right.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

from farside.data.chat import END, END_THINK, THINK
from farside.data.tokenizer import Tokenizer
from farside.rl.reward.verifier import VerifierPool
from farside.rl.types import Completion, Mark

CANDIDATE = re.compile(r"\\boxed\{([^{}]*)\}|(-?\d+(?:[./]\d+)?)")
"""What an intermediate answer looks like: \\boxed{...}, or a number."""
MOST_CANDIDATES = 64
"""Different candidates of one answer that are judged at most: judging may be slow."""

Judge = Callable[[list[str]], list[bool]]
"""Answers to one problem, without thinking and end mark -> which are right."""


def first_correct(text: str, judge: Judge) -> int | None:
    """Characters of a completion's text up to the end of the first right answer in it: a candidate in the thinking,
    else the final answer. None if there is no right one."""
    thinking, closed, rest = text.partition(END_THINK)
    if not closed:
        thinking, rest = ("", text) if THINK not in text else (text, "")
    final = rest.partition(END)[0]
    ends: dict[str, int] = {}
    for match in CANDIDATE.finditer(thinking):
        if len(ends) < MOST_CANDIDATES:
            ends.setdefault(match[1] or match[2] or "", match.end())
    places = [*ends.values(), len(text) - len(rest) + len(final)]
    right = judge([*ends, final.strip()])
    return next((place for place, is_right in zip(places, right) if is_right), None)


def outcome_efficiency(item: Completion, verifier: VerifierPool, tokenizer: Tokenizer) -> float:
    """Of one answer, in tokens without the end mark."""

    def judge(answers: list[str]) -> list[bool]:
        verdicts = verifier.verify([(item.prompt, f"{answer}{END}") for answer in answers])
        return [verdict.mark is Mark.correct for verdict in verdicts]

    tokens = item.tokens[:-1] if item.tokens[-1:] == [tokenizer.end] else item.tokens
    place = first_correct(item.text, judge)
    return tokens_up_to(place, tokens, tokenizer) / max(len(tokens), 1) if place else 0.0


def tokens_up_to(characters: int, tokens: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many tokens it takes to write that many characters."""
    return bisect_left(range(len(tokens)), characters, key=lambda count: len(tokenizer.decode(list(tokens[:count]))))


def thinking_tokens(tokens: Sequence[int], tokenizer: Tokenizer) -> int:
    """Tokens between ``<think>`` and ``</think>``, or the end where it was not closed; 0 without ``<think>``."""
    if tokenizer.think not in tokens:
        return 0
    thought = tokens[tokens.index(tokenizer.think) + 1 :]
    return thought.index(tokenizer.end_think) if tokenizer.end_think in thought else len(thought)
