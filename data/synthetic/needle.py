"""Needles in real text: sentences with a key and a value, hidden at sentence boundaries, asked for at the end.

Key and value pairs are split by a hash: a pair of the evaluation never appears in training, and evaluation
reads a haystack file that training never opens. Boundaries are tokens that end a sentence in the text's own
language (the field's usual test walks back to "." and so puts every Chinese needle at depth 0).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from farside.configs.errors import UserError
from farside.configs.schema import NeedleConfig
from farside.data.batch import Sample, document_sample
from farside.data.order import fold, rng
from farside.data.synthetic import words
from farside.data.tokenizer import Tokenizer

HELD_OUT_SHARE = 5
"""One pair in this many belongs to the evaluation."""


@dataclass(frozen=True)
class Wording:
    """Templates of one language. The value follows the question's stem at once; ``close`` ends the answer."""

    keys: tuple[str, str]
    values: tuple[str, str]
    joint: str
    needle: str
    question: str
    close: str
    ends: tuple[str, ...]
    """Characters that end a sentence."""


WORDINGS = {
    "en": Wording(
        words.ENGLISH_KEYS, words.ENGLISH_VALUES, " ",
        " The secret of {key}: {value}.", "\nThe secret of {key}:", ".", (".", "!", "?", "\n"),
    ),
    "zh": Wording(
        words.CHINESE_KEYS, words.CHINESE_VALUES, "",
        "暗号“{key}”：“{value}”。", "\n暗号“{key}”：“", "”", ("。", "！", "？", "；", "\n"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Needle:
    key: str
    value: str


def draw_pair(lists: tuple[str, str], joint: str, generator: np.random.Generator, held_out: bool) -> str:
    """Two words of the lists; one pair in HELD_OUT_SHARE, by hash, is held out."""
    first, second = lists[0].split(), lists[1].split()
    while True:
        pair = joint.join((first[generator.integers(len(first))], second[generator.integers(len(second))]))
        if (fold("needle", pair) % HELD_OUT_SHARE == 0) == held_out:
            return pair


class NeedleWriter:
    """Needles and questions of one language as tokens."""

    def __init__(self, language: str, tokenizer: Tokenizer) -> None:
        if language not in WORDINGS:
            raise UserError(f"needles: no wording for language {language!r}; there are {', '.join(WORDINGS)}")
        self.wording, self.tokenizer = WORDINGS[language], tokenizer
        ends = set(self.wording.ends)
        self.ends_sentence = np.array(
            [tokenizer.decode([token])[-1:] in ends for token in range(tokenizer.vocab_size)]
        )  # [V] bool

    def draw(self, generator: np.random.Generator, count: int, held_out: bool) -> list[Needle]:
        """Needles with distinct keys and distinct values."""
        keys: dict[str, None] = {}
        values: dict[str, None] = {}
        while len(keys) < count:
            keys[draw_pair(self.wording.keys, self.wording.joint, generator, held_out)] = None
        while len(values) < count:
            values[draw_pair(self.wording.values, self.wording.joint, generator, held_out)] = None
        return [Needle(key, value) for key, value in zip(keys, values)]

    def needle(self, needle: Needle) -> list[int]:
        return self.tokenizer.encode(self.wording.needle.format(key=needle.key, value=needle.value))

    def question(self, needle: Needle) -> tuple[list[int], list[int]]:
        """(stem, answer): the stem is what a prompt ends with; the answer is the value and its closing mark."""
        stem = self.tokenizer.encode(self.wording.question.format(key=needle.key))
        space = " " if self.wording.joint else ""
        return stem, self.tokenizer.encode(f"{space}{needle.value}{self.wording.close}")

    def is_exact(self, needle: Needle, generated: list[int]) -> tuple[bool, str]:
        """Whether the value came back and was closed, and what did come back."""
        text = self.tokenizer.decode(generated).strip()
        answer = text.split(self.wording.close)[0]
        return answer == needle.value and self.wording.close in text, answer

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """Places where a sentence may be put in: 0 and after every token that ends one."""
        return np.concatenate(([0], np.flatnonzero(self.ends_sentence[tokens]) + 1))


def sample_texts(language: str, count: int, seed: int) -> Iterator[str]:
    """Training needles as text, so that a tokenizer learns their words."""
    wording, generator = WORDINGS[language], rng(seed, "needle texts", language)
    for _ in range(count):
        key = draw_pair(wording.keys, wording.joint, generator, held_out=False)
        value = draw_pair(wording.values, wording.joint, generator, held_out=False)
        yield wording.needle.format(key=key, value=value)


class NeedleSource:
    """Training documents of exactly S+1 tokens: real text, n needles inside, n questions with answers at the end."""

    languages = tuple(WORDINGS)

    def __init__(
        self,
        name: str,
        language: str,
        tokens: np.ndarray,
        tokenizer: Tokenizer,
        config: NeedleConfig,
        seed: int,
    ) -> None:
        self.name, self.tokens, self.config, self.seed = name, tokens, config, seed
        self.writer = NeedleWriter(language, tokenizer)

    def sample(self, index: int, seq_len: int) -> Sample:
        generator = rng(self.seed, "needle", self.name, seq_len, index)
        count = max(1, min(self.config.needles, seq_len // self.config.tokens_per_needle))
        needles = self.writer.draw(generator, count, held_out=False)
        hidden = [self.writer.needle(needle) for needle in needles]
        asked = [self.writer.question(needles[place]) for place in generator.permutation(count)]
        tail = [token for stem, answer in asked for token in (*stem, *answer)]
        weight = [
            value
            for stem, answer in asked
            for value in (*[self.config.text_weight] * len(stem), *[self.config.answer_weight] * len(answer))
        ]
        room = seq_len + 1 - len(tail) - sum(map(len, hidden))
        if room < 0 or len(self.tokens) <= room:
            raise UserError(f"needle_{self.name}: seq_len = {seq_len} leaves no room for a needle and its question")
        start = generator.integers(len(self.tokens) - room)
        text = np.asarray(self.tokens[start : start + room]).astype(np.int64)
        places = np.sort(generator.choice(self.writer.boundaries(text), size=count))
        tokens = np.concatenate([insert(text, hidden, places), np.array(tail, dtype=np.int64)])
        weights = np.full(len(tokens), self.config.text_weight, dtype=np.float32)
        weights[len(tokens) - len(weight) :] = weight
        starts = np.zeros(len(tokens), dtype=bool)
        starts[0] = True
        return document_sample(tokens, weights, starts)


def insert(text: np.ndarray, pieces: list[list[int]], places: np.ndarray) -> np.ndarray:
    """``text`` with each piece put in before its place; places ascend."""
    parts: list[np.ndarray] = []
    previous = 0
    for piece, place in zip(pieces, places):
        parts += [text[previous:place], np.array(piece, dtype=np.int64)]
        previous = int(place)
    return np.concatenate([*parts, text[previous:]])
