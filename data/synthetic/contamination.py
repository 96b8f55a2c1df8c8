"""Does what training draws hold what evaluation asks? Held-out pairs of words, and text of the haystack files.

A needle grid measures retrieval only if its pairs and its text are new to the model. That they are is arranged where
samples are made (``needle.is_held_out``; three splits of every source); this looks at the samples themselves:

- A run of 30 tokens that a haystack file holds too, anywhere in a sample: the 13 words of GPT-3's rule (arXiv
  2005.14165, appendix C) in tokens of a small vocabulary; at 13 tokens it is the phrases that all books share. Runs of
  fewer than 6 different tokens are rulers and blank lines, no text.
- A held-out key and a held-out value in one line, anywhere: that is a needle of the evaluation.
- Among the questions at the end of a synthetic sample, any held-out key or value. Elsewhere one alone says nothing:
  natural text may well speak of a stone bridge.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from farside.data.batch import Sample
from farside.data.mixing import StageMixture
from farside.data.mixture import Source
from farside.data.prepare import Prepared
from farside.data.synthetic.needle import WORDINGS, NeedleSource, is_held_out
from farside.data.synthetic.source import TaskSource
from farside.data.tokenizer import Tokenizer

CONTAMINATION = "contamination.json"
RUN = 30
DIFFERENT = 6
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Leak:
    """kind: "text", "needle" or "pair"; what: the words that evaluation uses too."""

    kind: str
    what: str


class Evaluation:
    """What the needle grids use. haystacks: language -> token ids [T] of a haystack file."""

    def __init__(self, haystacks: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.languages = [language for language in haystacks if language in WORDINGS]
        self.runs = np.unique(np.concatenate([run_hashes(np.asarray(tokens)) for tokens in haystacks.values()]))

    @classmethod
    def of(cls, data: Prepared, names: Sequence[str]) -> "Evaluation":
        """names: the sources whose haystack files are evaluated on."""
        return cls({data.language(name): data.tokens(name, "haystack") for name in names}, data.tokenizer)

    def leaks(self, sample: Sample, asks: bool) -> list[Leak]:
        """asks: whether the sample ends in questions, the answers to which weigh most."""
        tokens = np.append(sample.tokens, sample.labels[-1])
        text = self.tokenizer.decode(tokens.tolist())
        found = [*self._runs(tokens), *self._needles(text)]
        if asks:
            first = int(sample.weights.argmax()) + 1
            stem = self.tokenizer.decode(tokens[:first].tolist()).rpartition("\n")[2]
            found += self._pairs(stem + self.tokenizer.decode(tokens[first:].tolist()))
        return found

    def _runs(self, tokens: np.ndarray) -> Iterator[Leak]:
        previous = -RUN
        for start in np.flatnonzero(np.isin(run_hashes(tokens), self.runs)).tolist():
            run = tokens[start : start + RUN]
            if start >= previous + RUN and len(np.unique(run)) >= DIFFERENT:  # of overlapping ones the first speaks
                previous = start
                yield Leak("text", self.tokenizer.decode(run.tolist()))

    def _needles(self, text: str) -> Iterator[Leak]:
        for language in self.languages:
            keys, values = patterns(language)
            for line in text.splitlines():
                key, value = (next(_held_out(pattern, line), None) for pattern in (keys, values))
                if key and value:
                    yield Leak("needle", f"{key} / {value}")

    def _pairs(self, text: str) -> Iterator[Leak]:
        for language in self.languages:
            for pattern in patterns(language):
                yield from (Leak("pair", words) for words in _held_out(pattern, text))


def run_hashes(tokens: np.ndarray) -> np.ndarray:
    """uint64 [T - RUN + 1]: a hash of every run of RUN tokens."""
    values = tokens.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(max(0, len(tokens) - RUN + 1), dtype=np.uint64)
    for place in range(RUN):
        hashes = hashes * _FACTOR + values[place : place + len(hashes)]
    return hashes


@cache
def patterns(language: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Keys and values of a language as they may stand in text; code joins words by an underscore."""
    wording = WORDINGS[language]
    joints = "|".join(dict.fromkeys((re.escape(wording.joint), "_")))

    def pattern(lists: tuple[str, str]) -> re.Pattern[str]:
        first, second = ("|".join(part.split()) for part in lists)
        return re.compile(rf"(?<![A-Za-z])({first})(?:{joints})({second})(?![A-Za-z])")

    return pattern(wording.keys), pattern(wording.values)


def _held_out(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (match[0] for match in pattern.finditer(text) if is_held_out(match[1], match[2]))


def scan(
    evaluation: Evaluation, sources: Mapping[str, Source], names: Sequence[str], seq_len: int, few: int
) -> list[tuple[str, int, Leak]]:
    """(source, sample, leak) among the first ``few`` samples of each named source."""
    return [
        (name, index, leak)
        for name in names
        for index in range(few)
        for leak in evaluation.leaks(
            sources[name].sample(index, seq_len), isinstance(sources[name], NeedleSource | TaskSource)
        )
    ]


def look(evaluation: Evaluation, mixtures: Sequence[StageMixture], few: int) -> list[dict[str, Any]]:
    """One JSON object a stage: its name, how many samples of each entry were searched, and ``leaks``: entry -> what was
    found there, in the order of the samples."""
    found = []
    for planned in mixtures:
        names = list(planned.asked)
        leaks: dict[str, list[dict[str, Any]]] = {}
        sources = {name: planned.source(name) for name in names}
        for name, sample, leak in scan(evaluation, sources, names, planned.stage.seq_len, few):
            leaks.setdefault(name, []).append({"sample": sample, "kind": leak.kind, "what": leak.what})
        found.append({"stage": planned.stage.name, "samples": few, "entries": names, "leaks": leaks})
    return found
