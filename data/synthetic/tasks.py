"""Six long-context tasks by construction: sentences to hide in real text, questions about them, exact answers.

keyvalue: look up entries of a list (Liu et al., arXiv 2307.03172). tracking: chains of assignments, all names with a
value (RULER's variable tracking, arXiv 2404.06654). count: how often words were noted, and which most often (RULER's
aggregation). documents: which of many numbered documents tells of somebody, and what. summary: all headlines, in order.
manyshot: a mapping that only the examples show, in a format that only they show.

Key and value pairs are drawn from the training side of the needles' hash split. ``scale`` in (0, 1] shrinks counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from farside.configs.schema import SyntheticConfig
from farside.data.synthetic.needle import is_held_out
from farside.data.synthetic.phrases import Phrases, fill

Pieces = list[str]
"""Text as parts that are encoded one by one."""


@dataclass(frozen=True)
class Task:
    """hidden: sentences, in the order in which the text must hold them; asks: (stem, answer) of every question.

    together: the sentences stand side by side, else each at a place of its own; at_start: the first begins the text.
    """

    hidden: list[Pieces]
    asks: list[tuple[Pieces, Pieces]]
    together: bool = False
    at_start: bool = False


LETTERS = list("ABCDEFGHJKLMNPQRSTUVWXYZ")
MOST_NAMES = len(LETTERS) ** 3 // 2
"""Of three letters; half of all, so that different ones are soon drawn. What a language has bounds the other counts."""
Draw = Callable[[Phrases, np.random.Generator, float, SyntheticConfig], Task]


def keyvalue(phrases: Phrases, generator: np.random.Generator, scale: float, config: SyntheticConfig) -> Task:
    count = scaled(min(config.keyvalue.entries, supply(phrases)), scale, 2)
    keys, values = pairs(phrases, generator, count), pairs(phrases, generator, count, values=True)
    write = lambda template, n: fill(template, phrases.space, key=keys[n], value=values[n])  # noqa: E731
    asked = generator.permutation(count)[: scaled(config.keyvalue.questions, scale, 1)]
    return Task(
        [[phrases.list_open], *(write(phrases.list_entry, n) for n in range(count)), [phrases.list_close]],
        [(write(phrases.list_ask, n), write(phrases.list_answer, n)) for n in asked],
        together=True,
    )


def tracking(phrases: Phrases, generator: np.random.Generator, scale: float, config: SyntheticConfig) -> Task:
    hops = scaled(min(config.tracking.hops, MOST_NAMES - 1), scale, 1)
    chains = scaled(min(config.tracking.chains, MOST_NAMES // (hops + 1)), scale, 1)
    names = _distinct(generator, chains * (hops + 1), lambda: "".join(generator.choice(LETTERS, 3)))
    values = _distinct(generator, chains, lambda: str(generator.integers(10_000, 100_000)))
    members = [names[chain * (hops + 1) :][: hops + 1] for chain in range(chains)]
    # chains run through one another, each in its own order
    turns = generator.permutation(np.repeat(np.arange(chains), hops + 1))
    done = [0] * chains
    hidden: list[Pieces] = []
    for chain in turns:
        place = done[chain]
        source = members[chain][place - 1] if place else values[chain]
        hidden.append(fill(phrases.track_set, phrases.space, name=members[chain][place], value=source))
        done[chain] += 1
    asks = []
    for chain in generator.permutation(chains):
        answer: Pieces = []
        for name in members[chain]:
            answer += [*([phrases.comma] if answer else []), phrases.space + name]
        stem = fill(phrases.track_ask, phrases.space, value=values[chain])
        asks.append((stem, [*answer, phrases.track_answer_end]))
    return Task(hidden, asks)


def count(phrases: Phrases, generator: np.random.Generator, scale: float, config: SyntheticConfig) -> Task:
    pool = phrases.values[0].split()
    number = scaled(min(config.count.words, len(pool)), scale, 2)
    words = [pool[n] for n in generator.permutation(len(pool))[:number]]
    most = max(2, round(config.count.most * scale))
    times = [most, *(int(number) for number in generator.integers(1, most, size=len(words) - 1))]
    notes = generator.permutation(np.repeat(np.arange(len(words)), times))
    asks = [(fill(phrases.most_ask, ""), fill(phrases.note_answer, phrases.space, number=words[0]))]
    for n in generator.permutation(len(words)):
        stem = fill(phrases.note_ask, phrases.space, word=words[n])
        asks.append((stem, fill(phrases.note_answer, phrases.space, number=str(times[n]))))
    return Task([fill(phrases.note, phrases.space, word=words[n]) for n in notes], asks)


def documents(phrases: Phrases, generator: np.random.Generator, scale: float, config: SyntheticConfig) -> Task:
    number = scaled(min(config.documents.documents, 2 * len(phrases.keys[0].split())), scale, 2)
    keys = _confusable(phrases, generator, number)
    values = pairs(phrases, generator, number, values=True)
    hidden, asks = [], []
    for n in range(number):
        hidden.append(fill(phrases.document, phrases.space, number=str(n + 1)))
        hidden.append(fill(phrases.fact, phrases.space, key=keys[n], value=values[n]))
    for n in generator.permutation(number)[: scaled(config.documents.questions, scale, 1)]:
        by_number = generator.random() < 0.5
        stem = phrases.document_ask if by_number else phrases.fact_ask
        answer = phrases.document_answer if by_number else phrases.fact_answer
        told = {"key": keys[n], "value": values[n], "number": str(n + 1)}
        asks.append((fill(stem, phrases.space, **told), fill(answer, phrases.space, **told)))
    return Task(hidden, asks, at_start=True)


def summary(phrases: Phrases, generator: np.random.Generator, scale: float, config: SyntheticConfig) -> Task:
    number = scaled(min(config.summary.sections, supply(phrases)), scale, 2)
    keys, values = pairs(phrases, generator, number), pairs(phrases, generator, number, values=True)
    write = lambda template, n: fill(template, phrases.space, key=keys[n], value=values[n])  # noqa: E731
    answer = [piece for n in range(number) for piece in write(phrases.sections_answer, n)]
    return Task([write(phrases.section, n) for n in range(number)], [([phrases.sections_ask], answer)])


ARROWS = (" ->", " =>", " :", " |", " ~")
BRACKETS = (("", ""), ("[", "]"), ("(", ")"), ("*", "*"), ("<", ">"))


def manyshot(phrases: Phrases, generator: np.random.Generator, scale: float, config: SyntheticConfig) -> Task:
    """An input's second word decides its label; the first one is any. Classes are shown about equally often."""
    settings = config.manyshot
    seconds, labels = (part.split() for part in (phrases.keys[1], phrases.values[0]))
    classes = scaled(min(settings.classes, len(seconds), len(labels)), scale, 2)
    chosen = [seconds[n] for n in generator.permutation(len(seconds))[:classes]]
    names = [labels[n] for n in generator.permutation(len(labels))[:classes]]
    arrow = ARROWS[generator.integers(len(ARROWS))]
    left, right = BRACKETS[generator.integers(len(BRACKETS))]
    # an input is a pair too: the evaluation's are left out
    firsts = [[first for first in phrases.keys[0].split() if not is_held_out(first, second)] for second in chosen]
    examples, questions = max(classes, scaled(settings.examples, scale, 2)), scaled(settings.questions, scale, 1)

    def words(kind: int) -> dict[str, str]:
        told = firsts[kind][generator.integers(len(firsts[kind]))] + phrases.joint + chosen[kind]
        return {"input": told, "arrow": arrow, "label": left + names[kind] + right}

    def write(template: str, told: dict[str, str]) -> Pieces:
        # the arrow brings its own space
        return fill(template.replace("{arrow}", arrow), phrases.space, **told)

    shown = [words(int(kind)) for kind in generator.permutation(np.arange(examples) % classes)]
    asked = [words(int(kind)) for kind in generator.integers(classes, size=questions)]
    asks = [(write(phrases.shot_ask, told), write(phrases.shot_answer, told)) for told in asked]
    return Task([*(write(phrases.shot, told) for told in shown), ["\n"]], asks, together=True)


TASKS: dict[str, Draw] = {
    "keyvalue": keyvalue,
    "tracking": tracking,
    "count": count,
    "documents": documents,
    "summary": summary,
    "manyshot": manyshot,
}


def scaled(most: int, scale: float, least: int) -> int:
    return max(least, round(most * scale))


@cache
def supply(phrases: Phrases) -> int:
    """How many different keys, and values, there are for training, rounded down to three quarters of them."""
    free = (
        sum(not is_held_out(one, other) for one in first.split() for other in second.split())
        for first, second in (phrases.keys, phrases.values)
    )
    return min(free) * 3 // 4


def pairs(phrases: Phrases, generator: np.random.Generator, number: int, values: bool = False) -> list[str]:
    """Different pairs of words that the evaluation does not use."""
    first, second = (part.split() for part in (phrases.values if values else phrases.keys))

    def draw() -> str:
        while is_held_out(*(pair := (first[generator.integers(len(first))], second[generator.integers(len(second))]))):
            pass
        return phrases.joint.join(pair)

    return _distinct(generator, number, draw)


def _confusable(phrases: Phrases, generator: np.random.Generator, number: int) -> list[str]:
    """Keys two of which each begin with the same word, so that it does not suffice to find the first one."""
    firsts, seconds = (part.split() for part in phrases.keys)
    keys: list[str] = []
    for first in generator.permutation(len(firsts))[: -(-number // 2)]:
        fitting = [second for second in seconds if not is_held_out(firsts[first], second)]
        keys += [firsts[first] + phrases.joint + fitting[n] for n in generator.permutation(len(fitting))[:2]]
    return [keys[n] for n in generator.permutation(number)]


def _distinct(generator: np.random.Generator, number: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < number:
        found.setdefault(draw())
    return list(found)
