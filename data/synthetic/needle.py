"""Needles in real text: sentences with a key and a value, hidden at sentence boundaries, asked for at the end.

Key and value pairs are split by a hash: a pair of the evaluation never appears in training, and evaluation
reads a haystack file that training never opens. Boundaries are tokens that end a sentence in the text's own
language (the field's usual test walks back to "." and so puts every Chinese needle at depth 0).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

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
    """Templates of one language: a needle, and a question that it completes; ``close`` ends the answer.

    The value stands right behind the key, so that looking it up is one step: a separator between the two makes it
    two steps, which small models learn late or never (docs/LOG.md, 2026-11-22).
    """

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
        words.ENGLISH_KEYS,
        words.ENGLISH_VALUES,
        " ",
        " Remember: {key}{value}.",
        "\nRecall: {key}",
        ".",
        (".", "!", "?", "\n"),
    ),
    "zh": Wording(
        words.CHINESE_KEYS,
        words.CHINESE_VALUES,
        "",
        "记住：{key}{value}。",
        "\n回忆：{key}",
        "。",
        ("。", "！", "？", "；", "\n"),
    ),
}


@dataclass(frozen=True)
class Needle:
    """first: the key's first word."""

    key: str
    value: str
    first: str


def draw_pair(lists: tuple[str, str], generator: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """Two words of the lists; one pair in HELD_OUT_SHARE, by hash, is held out."""
    first, second = lists[0].split(), lists[1].split()
    while True:
        pair = first[generator.integers(len(first))], second[generator.integers(len(second))]
        if is_held_out(*pair) == held_out:
            return pair


@cache
def is_held_out(first: str, second: str) -> bool:
    """Whether the pair belongs to the evaluation."""
    return fold("needle", first, second) % HELD_OUT_SHARE == 0


class NeedleWriter:
    """Needles and questions of one language as tokens."""

    def __init__(self, language: str, tokenizer: Tokenizer) -> None:
        if language not in WORDINGS:
            raise UserError(f"needles: no wording for language {language!r}; there are {', '.join(WORDINGS)}")
        self.wording, self.tokenizer = WORDINGS[language], tokenizer
        self.ends_sentence = sentence_ends(tokenizer, self.wording.ends)

    def draw(self, generator: np.random.Generator, count: int, held_out: bool) -> list[Needle]:
        """Needles whose keys differ in their first words, so that one word tells them apart; so do the values."""
        needles: dict[str, Needle] = {}
        values: set[str] = set()
        join = self.wording.joint.join
        while len(needles) < count:
            key = draw_pair(self.wording.keys, generator, held_out)
            value = draw_pair(self.wording.values, generator, held_out)
            needle = Needle(join(key), join(value), key[0])
            if key[0] not in needles and value[0] not in values and self.is_whole(needle):
                needles[key[0]] = needle
                values.add(value[0])
        return list(needles.values())

    def is_whole(self, needle: Needle) -> bool:
        """Whether the value's tokens in the needle are those of the answer: BPE may merge across the key's end."""
        answer = self.question(needle)[1]
        return self.needle(needle)[-len(answer) :] == answer

    def needle(self, needle: Needle) -> list[int]:
        value = self.wording.joint + needle.value
        return self.tokenizer.encode(self.wording.needle.format(key=needle.key, value=value))

    def question(self, needle: Needle) -> tuple[list[int], list[int]]:
        """(stem, answer): the stem is what a prompt ends with; the answer is the value and its closing mark."""
        stem = self.tokenizer.encode(self.wording.question.format(key=needle.key))
        return stem, self.tokenizer.encode(f"{self.wording.joint}{needle.value}{self.wording.close}")

    def told_by_text(self, needle: Needle) -> list[bool]:
        """Per token of the stem: whether it is of the key's second word, which the text and the first tell."""
        text = self.wording.question.format(key=needle.key)
        key = text.index(needle.key)
        spans = self.tokenizer.backend.encode(text, add_special_tokens=False).offsets
        return [key + len(needle.first) <= start < key + len(needle.key) for start, _ in spans]

    def is_exact(self, needle: Needle, generated: list[int]) -> tuple[bool, str]:
        """Whether the value came back and was closed, and what did come back."""
        text = self.tokenizer.decode(generated).strip()
        answer = text.split(self.wording.close)[0]
        return answer == needle.value and self.wording.close in text, answer

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """Places where a sentence may be put in: 0 and after every token that ends one."""
        return np.concatenate(([0], np.flatnonzero(self.ends_sentence[tokens]) + 1))


def sentence_ends(tokenizer: Tokenizer, ends: tuple[str, ...]) -> np.ndarray:
    """[V] bool: whether a token ends with one of the characters."""
    return np.array([tokenizer.decode([token])[-1:] in ends for token in range(tokenizer.vocab_size)])


def sample_texts(language: str, count: int, seed: int) -> Iterator[str]:
    """Training needles as text, so that a tokenizer learns their words."""
    wording, generator = WORDINGS[language], rng(seed, "needle texts", language)
    for _ in range(count):
        key = wording.joint.join(draw_pair(wording.keys, generator, held_out=False))
        value = wording.joint.join(draw_pair(wording.values, generator, held_out=False))
        yield wording.needle.format(key=key, value=wording.joint + value)


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
        most = max(1, min(self.config.needles, seq_len // self.config.tokens_per_needle))
        count = most if generator.random() < 0.5 else int(generator.integers(1, most + 1))
        needles = self.writer.draw(generator, count, held_out=False)
        order = generator.permutation(count)
        while True:  # words may be longer than most: as many needles as leave room for text
            hidden = [self.writer.needle(needle) for needle in needles]
            tail, is_answer = self._questions([needles[place] for place in order if place < len(needles)])
            room = seq_len + 1 - len(tail) - sum(map(len, hidden))
            if room >= 0:
                break
            needles.pop()
        if not needles or len(self.tokens) <= room:
            raise UserError(f"needle_{self.name}: seq_len = {seq_len} leaves no room for a needle and its question")
        start = generator.integers(len(self.tokens) - room)
        text = np.asarray(self.tokens[start : start + room]).astype(np.int64)
        places = np.sort(generator.choice(self.writer.boundaries(text), size=len(needles)))
        whole = insert(text, hidden, places)
        return questioned(whole, tail, is_answer, generator, self.config.answer_share, self.config.text_share)

    def _questions(self, needles: list[Needle]) -> tuple[list[int], list[bool]]:
        """Tokens of all questions with answers, and which of them are to be looked up in the text: answers, and the
        second word of a key, which gives the same lesson twice (it halves the tokens until retrieval is learnt)."""
        tokens: list[int] = []
        looked_up: list[bool] = []
        for needle in needles:
            stem, answer = self.writer.question(needle)
            tokens += [*stem, *answer]
            looked_up += [*self.writer.told_by_text(needle), *[True] * len(answer)]
        return tokens, looked_up


def questioned(
    text: np.ndarray,
    tail: list[int],
    is_answer: list[bool],
    generator: np.random.Generator,
    answer_share: float,
    text_share: float,
) -> Sample:
    """One document: the text and, behind it, its questions with answers. is_answer: which tokens of the tail."""
    tokens = np.concatenate([text, np.array(tail, dtype=np.int64)])
    answers = np.zeros(len(tokens), dtype=bool)
    answers[len(text) :] = is_answer
    starts = np.zeros(len(tokens), dtype=bool)
    starts[0] = True
    return document_sample(tokens, answer_weights(answers, generator, answer_share, text_share), starts)


def answer_weights(
    answers: np.ndarray, generator: np.random.Generator, answer_share: float, text_share: float
) -> np.ndarray:
    """Weights [S+1] with sum S: answer_share on answers, the rest on a random text_share of the other tokens."""
    counted = ~answers & (generator.random(len(answers)) < text_share)
    size = len(answers) - 1
    weights = np.zeros(len(answers), dtype=np.float32)
    weights[answers] = answer_share * size / answers.sum()
    weights[counted] = (1 - answer_share) * size / max(1, counted.sum())
    return weights


def insert(text: np.ndarray, pieces: list[list[int]], places: np.ndarray) -> np.ndarray:
    """``text`` with each piece put in before its place; places ascend."""
    parts: list[np.ndarray] = []
    previous = 0
    for piece, place in zip(pieces, places):
        parts += [text[previous:place], np.array(piece, dtype=np.int64)]
        previous = int(place)
    return np.concatenate([*parts, text[previous:]])
