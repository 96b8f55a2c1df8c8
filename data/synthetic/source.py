"""Synthetic tasks as training samples: a task's sentences hidden in real text, its questions answered at the end."""

from functools import cached_property
from itertools import chain

import numpy as np

from farside.configs.errors import UserError
from farside.configs.schema import SyntheticConfig
from farside.data.batch import Sample
from farside.data.order import rng
from farside.data.synthetic.needle import insert, questioned, sentence_ends
from farside.data.synthetic.phrases import PHRASES
from farside.data.synthetic.tasks import TASKS, Task
from farside.data.tokenizer import Tokenizer


class TaskSource:
    """Documents of exactly S+1 tokens of one kind of task (docs/synthetic.md) in the text of one source.

    Half of the samples hold as much of the task as the settings and the length allow, the others less. tokens [T]: the
    source's training text.
    """

    languages = tuple(PHRASES)

    def __init__(
        self,
        kind: str,
        name: str,
        language: str,
        tokens: np.ndarray,
        tokenizer: Tokenizer,
        config: SyntheticConfig,
        seed: int,
    ) -> None:
        self.kind, self.name, self.tokens, self.tokenizer = kind, name, tokens, tokenizer
        self.phrases, self.config, self.seed = PHRASES[language], config, seed

    @cached_property
    def ends_sentence(self) -> np.ndarray:
        return sentence_ends(self.tokenizer, self.phrases.ends)

    def sample(self, index: int, seq_len: int) -> Sample:
        budget = round((1 - self.config.haystack_share) * seq_len)
        shrink = 1.0
        for _ in range(12):
            generator = rng(self.seed, self.kind, self.name, seq_len, index)  # anew: a sample is a function of these
            part = 1.0 if generator.random() < 0.5 else generator.uniform(0.1, 1.0)
            task = TASKS[self.kind](self.phrases, generator, part * shrink, self.config)
            hidden, tail, is_answer = self._encode(task)
            needed = len(tail) + sum(map(len, hidden))
            if needed <= budget:
                break
            shrink *= min(0.9, budget / needed)
        else:
            raise UserError(
                f"{self.kind}_{self.name}: seq_len = {seq_len} leaves no room for the smallest such task ({needed} "
                "tokens beside its text); use longer samples or lower data.synthetic.haystack_share"
            )
        room = seq_len + 1 - needed
        if len(self.tokens) <= room:
            raise UserError(f"{self.kind}_{self.name}: the source has fewer than {room:,} tokens of text; give more")
        start = generator.integers(len(self.tokens) - room)
        text = np.asarray(self.tokens[start : start + room]).astype(np.int64)
        places = self._places(text, 1 if task.together else len(hidden), generator)
        if task.together:
            places = places.repeat(len(hidden))
        if task.at_start:
            places[0] = 0
        whole = insert(text, hidden, places)
        return questioned(whole, tail, is_answer, generator, self.config.answer_share, self.config.text_share)

    def _places(self, text: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Ascending places at the text's beginning or behind its sentences."""
        boundaries = np.concatenate(([0], np.flatnonzero(self.ends_sentence[text]) + 1))
        return np.sort(generator.choice(boundaries, size=count))

    def _encode(self, task: Task) -> tuple[list[list[int]], list[int], list[bool]]:
        """Tokens of each hidden sentence; of all questions with answers; and which of the latter are answers."""
        parts = [*task.hidden, *chain.from_iterable(task.asks)]
        encoded = iter(self.tokenizer.encode_batch([piece for pieces in parts for piece in pieces]))
        tokens = [[token for _ in pieces for token in next(encoded)] for pieces in parts]
        hidden, asks = tokens[: len(task.hidden)], tokens[len(task.hidden) :]
        is_answer = [bool(number % 2) for number, part in enumerate(asks) for _ in part]
        return hidden, [token for part in asks for token in part], is_answer
