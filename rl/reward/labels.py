"""Labels of steps from the policy itself (Math-Shepherd, arXiv 2312.08935, section 3.3): a prefix is as right as what
the policy makes of it."""

from collections.abc import Callable, Sequence

import numpy as np

from farside.configs.schema import StepLabels
from farside.data.order import rng
from farside.rl.reward.process import Labelled
from farside.rl.reward.steps import StepFinder
from farside.rl.rollout.native import NativeRollout
from farside.rl.types import Completion, Mark, Prompt, Verdict
from farside.train.inference.generate import Request, decode

Verify = Callable[[list[tuple[Prompt, str]]], list[Verdict]]
PREFIXES_AT_ONCE = 128

Prefix = tuple[int, tuple[int, ...]]
"""(problem, the answer's first tokens)"""


def label(right: float, kind: StepLabels) -> float:
    """From the share of continuations that reach the right answer: hard (any does) or soft (the share)."""
    return float(right > 0) if kind is StepLabels.hard else right


class Continuations:
    """How often a prefix of an answer leads to the right one, by ``count`` continuations at temperature 1."""

    def __init__(self, rollout: NativeRollout, verify: Verify, count: int, max_new_tokens: int, seed: int) -> None:
        self.rollout, self.verify, self.count = rollout, verify, count
        self.max_new_tokens, self.seed = max_new_tokens, seed

    def label(
        self, completions: Sequence[Completion], verdicts: Sequence[Verdict], finder: StepFinder, kind: StepLabels
    ) -> list[Labelled]:
        """All answers that were verified, each step labelled; the last one by the verdict, there is nothing to add."""
        known = [pair for pair in zip(completions, verdicts) if pair[1].mark is not Mark.error]
        ends = [finder.ends(item.tokens) for item, _ in known]
        prefixes: dict[Prefix, Completion] = {}
        for (item, _), places in zip(known, ends):
            prefixes |= {_prefix(item, end): item for end in places[:-1]}
        shares = self.shares(prefixes)
        return [
            Labelled(
                item,
                places,
                [label(shares[_prefix(item, end)], kind) for end in places[:-1]]
                + [float(verdict.mark is Mark.correct)],
            )
            for (item, verdict), places in zip(known, ends)
        ]

    def shares(self, prefixes: dict[Prefix, Completion]) -> dict[Prefix, float]:
        """Share of right continuations by prefix; samples with equal beginnings share it. An error of the verifier is
        no right answer."""
        found: dict[Prefix, float] = {}
        names = list(prefixes)
        for first in range(0, len(names), PREFIXES_AT_ONCE):
            part = names[first : first + PREFIXES_AT_ONCE]
            texts = self._continue(part, [prefixes[name] for name in part])
            asked = [(prefixes[name].prompt, text) for name, each in zip(part, texts) for text in each]
            right = [verdict.mark is Mark.correct for verdict in self.verify(asked)]
            found |= dict(zip(part, np.array(right).reshape(len(part), self.count).mean(1).tolist()))
        return found

    def _continue(self, names: Sequence[Prefix], items: Sequence[Completion]) -> list[list[str]]:
        """Texts of whole answers. One that would be longer than a sample may be is cut where a sample is."""
        draws = [
            rng(self.seed, "continue", self.rollout.step, name).random((self.count, self.max_new_tokens))
            for name in names
        ]
        prompts = [item.prompt_tokens + list(tokens) for item, (_, tokens) in zip(items, names)]
        asked = [Request(prompt, self.max_new_tokens, row) for prompt, each in zip(prompts, draws) for row in each]
        tokenizer = self.rollout.tokenizer
        answers = decode(self.rollout.decoder, asked, tokenizer.end).answers
        whole = [
            [*names[number // self.count][1], *answer.tokens][: self.max_new_tokens]
            for number, answer in enumerate(answers)
        ]
        texts = [tokenizer.decode(tokens) for tokens in whole]
        return [texts[first : first + self.count] for first in range(0, len(texts), self.count)]


def _prefix(item: Completion, end: int) -> Prefix:
    return item.prompt.index, tuple(item.tokens[: end + 1])
