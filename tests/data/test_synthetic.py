"""Tasks with known answers: an oracle that reads nothing but the decoded sample must find every one in its context."""

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farside.configs.errors import UserError
from farside.configs.schema import KeyValueConfig, NeedleConfig, SyntheticConfig
from farside.data.batch import Sample
from farside.data.synthetic.copy import CopySource
from farside.data.synthetic.needle import NeedleSource
from farside.data.synthetic.source import TaskSource
from farside.data.synthetic.tasks import TASKS
from farside.data.tokenizer import Tokenizer

LANGUAGES = ("en", "zh", "code")
Sources = Callable[[str, str], TaskSource]


@pytest.fixture(scope="module")
def sources(streams: dict[str, np.ndarray], tokenizer: Tokenizer) -> Sources:
    code = tokenizer.encode(Path(argparse.__file__).read_text())
    texts = {**streams, "code": np.array(code, dtype=np.uint16)}
    built: dict[tuple[str, str], TaskSource] = {}

    def build(kind: str, language: str) -> TaskSource:
        if (kind, language) not in built:
            rest = (language, texts[language], tokenizer, SyntheticConfig(), 0)
            built[kind, language] = TaskSource(kind, language, *rest)
        return built[kind, language]

    return build


def whole(row: Sample) -> np.ndarray:
    return np.append(row.tokens, row.labels[-1])


def questions(row: Sample, tokenizer: Tokenizer) -> tuple[str, list[tuple[str, str]]]:
    """The context, and (stem, answer) of every question: answers are the tokens that weigh most."""
    tokens, weights = whole(row), np.append(0.0, row.weights)
    heavy = np.flatnonzero(weights == weights.max())
    groups = np.split(heavy, np.flatnonzero(np.diff(heavy) > 1) + 1)
    asked = []
    for group in groups:
        before = tokenizer.decode(tokens[: group[0]].tolist())
        asked.append((before.rpartition("\n")[2], tokenizer.decode(tokens[group[0] : group[-1] + 1].tolist())))
    assert heavy[-1] == len(tokens) - 1, "nothing follows the last answer"
    return tokenizer.decode(tokens[: groups[0][0]].tolist()).rpartition("\n")[0], asked


PATTERNS = {
    "keyvalue": {
        "en": (r"^In the list is (.+):$", r"^- {}: (.+;)$", " "),
        "zh": (r"^清单中有(.+)：$", r"^－{}：(.+；)$", ""),
        "code": (r'^assert TABLE\["(\w+)"\] == "$', r'^    "{}": "(\w+"),$', ""),
    },
    "tracking": {
        "en": (r"^Equal to (\d+):$", r" Let (\w+) be (\w+)\.", " {}.", ", "),
        "zh": (r"^等于(\d+)的有：$", r"令([A-Z]+)为(\w+?)。", "{}。", "、"),
        "code": (r"^# equal to (\d+): $", r"^([A-Z]{3}) = (\w+)$", "{}\n", ", "),
    },
    "count": {
        "en": (r"^Times that (\w+) was noted:$", r"^Noted most often:$", r" Noted: (\w+)\.", " {}."),
        "zh": (r"^(.+)记下的次数：$", r"^记下最多的是：$", r"记下：(..)。", "{}。"),
        "code": (r"^# times that (\w+) was noted: $", r"^# noted most often: $", r"^# noted: (\w+)$", "{}\n"),
    },
    "documents": {
        "en": (r"^Document that tells of the (.+):$", r"^The (.+) keeps the$", r"^Document (\d+)\.$",
               r" The (\w+ \w+) keeps the (\w+ \w+)\.", " {}."),
        "zh": (r"^提到(.+)的文件：$", r"^已知(.+)保管着$", r"^文件(\d+)。$", r"(.{4})保管着(.{4})。", "{}。"),
        "code": (r"^# file that sets (\w+): $", r'^assert (\w+) == "$', r"^# file (\d+)$", r'^(\w+) = "(\w+)"$', '{}"'),
    },
    "summary": {
        "en": (r" Headline: the (\w+ \w+) finds the (\w+ \w+)\.", " The {} finds the {}."),
        "zh": (r"标题：(.{4})找到(.{4})。", "{}找到{}。"),
        "code": (r"^# headline: (\w+) calls (\w+)$", " {} calls {};"),
    },
    "manyshot": {
        "en": (r"^ (\w+) (\w+)( \S+)$", r"^ (\w+) (\w+){}( \S+\.)$"),
        "zh": (r"^(..)(..)( \S+)$", r"^(..)(..){}(\S+。)$"),
        "code": (r"^# ([a-z]+)_([a-z]+)( \S+)$", r"^# ([a-z]+)_([a-z]+){}(\S+;)$"),
    },
}  # fmt: skip


def keyvalue(context: str, stem: str, language: str) -> str:
    ask, entry, space = PATTERNS["keyvalue"][language]
    (key,) = re.fullmatch(ask, stem).groups()
    (value,) = re.findall(entry.format(re.escape(key)), context, re.MULTILINE)
    return space + value


def tracking(context: str, stem: str, language: str) -> str:
    ask, assignment, answer, comma = PATTERNS["tracking"][language]
    (wanted,) = re.fullmatch(ask, stem).groups()
    values: dict[str, str] = {}
    for name, value in re.findall(assignment, context, re.MULTILINE):
        assert name not in values, "a name is set twice"
        values[name] = values.get(value, value)
    return answer.format(comma.join(name for name, value in values.items() if value == wanted))


def count(context: str, stem: str, language: str) -> str:
    ask, most, note, answer = PATTERNS["count"][language]
    times = Counter(re.findall(note, context, re.MULTILINE))
    if re.fullmatch(most, stem):
        (first, high), *others = times.most_common(2)
        assert all(number < high for _, number in others), "two words are the most frequent"
        return answer.format(first)
    # in code both marks stand in one line's reach: the word's own answer is a number
    (word,) = re.fullmatch(ask, stem).groups()
    return answer.format(times[word])


def documents(context: str, stem: str, language: str) -> str:
    ask_number, ask_fact, heading, fact, answer = PATTERNS["documents"][language]
    numbers = [(match.start(), match[1]) for match in re.finditer(heading, context, re.MULTILINE)]
    assert [number for _, number in numbers] == [str(n + 1) for n in range(len(numbers))]
    assert numbers[0][0] <= 1, "text stands before the first document"
    facts = {match[1]: match for match in re.finditer(fact, context, re.MULTILINE)}
    assert len(facts) == len(numbers)
    by_number = re.fullmatch(ask_number, stem)
    found = facts[(by_number or re.fullmatch(ask_fact, stem))[1]]
    if not by_number:
        return answer.format(" " * (language == "en") + found[2]).replace("  ", " ")
    number = next(number for start, number in reversed(numbers) if start < found.start())
    return f"{number}\n" if language == "code" else answer.format(number)


def summary(context: str, stem: str, language: str) -> str:
    headline, answer = PATTERNS["summary"][language]
    return "".join(answer.format(*found) for found in re.findall(headline, context, re.MULTILINE))


def manyshot(context: str, stem: str, language: str) -> str:
    ask, shot = PATTERNS["manyshot"][language]
    _, second, arrow = re.fullmatch(ask, stem).groups()
    shots = re.findall(shot.format(re.escape(arrow)), context, re.MULTILINE)
    (label,) = {label for _, other, label in shots if other == second}
    return label


ORACLES = {oracle.__name__: oracle for oracle in (keyvalue, tracking, count, documents, summary, manyshot)}


def test_every_task_has_an_oracle() -> None:
    assert ORACLES.keys() == TASKS.keys() == PATTERNS.keys()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 10**6), seq_len=st.integers(192, 1500))
def test_answers_follow_from_the_context(sources: Sources, kind: str, language: str, index: int, seq_len: int) -> None:
    source = sources(kind, language)
    row = source.sample(index, seq_len)
    assert {len(part) for part in vars(row).values()} == {seq_len}
    assert (row.labels[:-1] == row.tokens[1:]).all()
    assert (row.positions == np.arange(seq_len)).all(), "one document"
    context, asked = questions(row, source.tokenizer)
    assert asked
    for stem, answer in asked:
        assert ORACLES[kind](context, stem, language) == answer, stem
    config = source.config
    heavy = row.weights == row.weights.max()
    assert row.weights[heavy].sum() == pytest.approx(config.answer_share * seq_len, rel=1e-4)
    assert row.weights.sum() <= seq_len * (1 + 1e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_difficulty_and_place_vary_and_long_samples_hold_all(sources: Sources, kind: str) -> None:
    source = sources(kind, "en")
    counts, places = Counter[int](), []
    for index in range(24):
        row = source.sample(index, 4096)
        context = questions(row, source.tokenizer)[0]
        marks = {
            "keyvalue": r"^- .+: .+;$", "tracking": r" Let \w+ be", "count": r" Noted: \w+\.",
            "documents": r" keeps the", "summary": r" Headline: ", "manyshot": r"^ \w+ \w+ \S+ \S+\.$",
        }  # fmt: skip
        found = [match.start() for match in re.finditer(marks[kind], context, re.MULTILINE)]
        counts[len(found)] += 1
        places += [start / len(context) for start in found]
    most = {"keyvalue": 60, "tracking": 15, "documents": 20, "summary": 12, "manyshot": 80}
    assert max(counts) == most.get(kind, max(counts))
    assert len(counts) > 4
    assert min(places) < 0.25
    assert max(places) > 0.75


def test_settings_are_obeyed_and_impossible_ones_named(sources: Sources, tokenizer: Tokenizer) -> None:
    source = sources("keyvalue", "en")
    config = SyntheticConfig(haystack_share=0.9, keyvalue=KeyValueConfig(entries=5, questions=2))
    other = TaskSource("keyvalue", "en", "en", source.tokens, tokenizer, config, 0)
    lengths = [len(re.findall(r"^- .+;$", questions(other.sample(n, 2000), tokenizer)[0], re.M)) for n in range(8)]
    assert max(lengths) == 5
    with pytest.raises(UserError, match=r"keyvalue_en: seq_len = 64 leaves no room for the smallest such task"):
        source.sample(0, 64)


def digest(*rows: Sample) -> str:
    told = hashlib.sha256()
    for row in rows:
        for part in vars(row).values():
            told.update(np.ascontiguousarray(part).tobytes())
    return told.hexdigest()[:12]


GOLDEN = {
    "needle": "ee71217217c4",
    "copy": "7aa93622b9c0",
    "keyvalue": "cb435584f1e4",
    "tracking": "1019832b3f27",
    "count": "acc5d8e9927d",
    "documents": "ac5a31171fc0",
    "summary": "7b6b5b04bb49",
    "manyshot": "1999f0dea3cc",
}


def test_streams_are_what_they_were(texts: dict[str, str]) -> None:
    """A sample is a function of seed and index: these digests change only with the data that a seed means."""
    pieces = {name: text[:20_000] for name, text in texts.items()}
    tokenizer = Tokenizer.train(pieces.values(), 600)
    streams = {name: np.array(tokenizer.encode(text), dtype=np.uint16) for name, text in pieces.items()}
    needles = [NeedleSource(name, name, streams[name], tokenizer, NeedleConfig(), 0) for name in streams]
    found = {
        "needle": digest(*(source.sample(n, size) for source in needles for n in range(4) for size in (128, 512))),
        "copy": digest(*(CopySource(streams["en"], 600, 0).sample(n, 64) for n in range(8))),
    }
    for kind in TASKS:
        tasks = [TaskSource(kind, name, name, streams[name], tokenizer, SyntheticConfig(), 0) for name in streams]
        found[kind] = digest(*(source.sample(n, size) for source in tasks for n in range(2) for size in (512, 900)))
    assert found == GOLDEN


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "manyshot" else kind for kind in TASKS]
)
def test_more_than_there_is_asks_for_all_there_is(sources: Sources, kind: str) -> None:
    """Settings beyond what a language has words for; the length then decides."""
    source = copy(sources(kind, "en"))
    many = dict.fromkeys(vars(getattr(source.config, kind)), 100000)
    source.config = replace(source.config, **{kind: replace(getattr(source.config, kind), **many)})
    if kind == "count":
        many["most"] = 50  # how often, not how many
        source.config = replace(source.config, **{kind: replace(getattr(source.config, kind), **many)})
    for index in range(2):
        assert source.sample(index, 2048).tokens.shape == (2048,)
