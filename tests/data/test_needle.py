"""Needles: what training sees, what evaluation asks, and that the two share nothing."""

from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest

from farside.configs.errors import UserError
from farside.configs.schema import NeedleConfig
from farside.data.batch import Sample
from farside.data.order import rng
from farside.data.synthetic.needle import Needle, NeedleSource, NeedleWriter, insert, sample_texts
from farside.data.tokenizer import Tokenizer
from farside.train.eval.niah import Trial, make_trial

LANGUAGES = ("en", "zh")
Build = Callable[[str], tuple[NeedleSource, list[list[Needle]]]]


@pytest.fixture
def build(streams: dict[str, np.ndarray], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A source of a language, and the list of what each sample draws."""

    def make(language: str) -> tuple[NeedleSource, list[list[Needle]]]:
        source = NeedleSource(language, language, streams[language], tokenizer, NeedleConfig(needles=6), 0)
        drawn: list[list[Needle]] = []
        original = source.writer.draw

        def draw(generator: np.random.Generator, count: int, held_out: bool) -> list[Needle]:
            assert not held_out, "training draws pairs of the evaluation"
            drawn.append(original(generator, count, held_out))
            return list(drawn[-1])

        monkeypatch.setattr(source.writer, "draw", draw)
        return source, drawn

    return make


def whole(row: Sample) -> np.ndarray:
    return np.append(row.tokens, row.labels[-1])


def find(tokens: np.ndarray, piece: list[int]) -> list[int]:
    """Places where ``piece`` stands in ``tokens``."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(piece))
    return np.flatnonzero((windows == np.array(piece)).all(1)).tolist()


@pytest.mark.parametrize("seq_len", [64, 128, 500])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sample_hides_needles_at_boundaries_and_asks_at_the_end(build: Build, language: str, seq_len: int) -> None:
    source, drawn = build(language)
    writer, counts, places = source.writer, set(), []
    for index in range(40):
        row = source.sample(index, seq_len)
        assert {len(part) for part in vars(row).values()} == {seq_len}
        assert (row.positions == np.arange(seq_len)).all(), "one document"
        assert len(set(row.doc_ids)) == 1
        assert (row.labels[:-1] == row.tokens[1:]).all()
        tokens = whole(row)
        asked = [needle for needle in drawn[-1] if find(tokens, [*chain(*writer.question(needle))])]
        assert asked
        counts.add(len(asked))
        tail = len(tokens) - sum(len(part) for needle in asked for part in writer.question(needle))
        text = set(range(tail))
        for needle in asked:
            (place,) = find(tokens[:tail], writer.needle(needle))
            ends = tokens[place - 1 : place].tolist()
            assert place == 0 or writer.tokenizer.decode(ends)[-1] in writer.wording.ends, "not at a boundary"
            text -= set(range(place, place + len(writer.needle(needle))))
            places.append(place / tail)
            assert writer.tokenizer.decode(tokens[tail:].tolist()).count(needle.value) == 1
        assert contiguous(tokens[sorted(text)], source.tokens), "the text between needles is not the source's"
        check_weights(writer, row, asked, tail)
    assert len(counts) > 1 or seq_len == 64
    assert min(places) < 0.25
    assert max(places) > 0.6


def contiguous(piece: np.ndarray, stream: np.ndarray) -> bool:
    starts = np.flatnonzero(stream[: len(stream) - len(piece) + 1] == piece[0]) if len(piece) else [0]
    return any((stream[start : start + len(piece)] == piece).all() for start in starts)


def check_weights(writer: NeedleWriter, row: Sample, asked: list[Needle], tail: int) -> None:
    """Answers carry one weight each token, the highest; nothing else has it but the second words of asked keys."""
    config, tokens = NeedleConfig(), whole(row)
    weights = np.append(0.0, row.weights)  # of predicting each token
    heavy = weights == weights.max()
    expected = np.zeros(len(tokens), dtype=bool)
    for needle in asked:
        stem, answer = writer.question(needle)
        (place,) = (spot for spot in find(tokens, [*stem, *answer]) if spot >= tail)
        expected[place + len(stem) :][: len(answer)] = True
        decoded = writer.tokenizer.decode(tokens[place + len(stem) :][: len(answer)].tolist())
        assert decoded == f"{writer.wording.joint}{needle.value}{writer.wording.close}"
        told = int(heavy[place : place + len(stem)].sum())
        assert told < len(stem)
        expected[place + len(stem) - told : place + len(stem)] = True
        if writer.wording.joint:  # words are parted: tokens end where they end
            second = writer.tokenizer.decode(stem[len(stem) - told :])
            assert second == needle.key.removeprefix(needle.first)
    assert (heavy == expected).all()
    assert weights[heavy].sum() == pytest.approx(config.answer_share * len(row.tokens), rel=1e-5)
    others = weights[~heavy]
    assert len(set(others)) <= 2, "other tokens: one weight or none"
    assert others.sum() <= (1 - config.answer_share) * len(row.tokens) * (1 + 1e-5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sample_is_a_function_of_seed_and_index(build: Build, language: str) -> None:
    source, _ = build(language)
    first, again, other = source.sample(5, 96), source.sample(5, 96), source.sample(6, 96)
    assert all((getattr(first, name) == getattr(again, name)).all() for name in vars(first))
    assert (first.tokens != other.tokens).any()


def test_too_short_a_sample_names_the_source(build: Build) -> None:
    with pytest.raises(UserError, match="needle_en: seq_len = 8"):
        build("en")[0].sample(0, 8)


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_pairs_are_never_drawn_in_training(language: str, tokenizer: Tokenizer) -> None:
    writer = NeedleWriter(language, tokenizer)
    drawn: dict[bool, tuple[set[str], set[str]]] = {}
    for held_out in (False, True):
        needles = [needle for seed in range(150) for needle in writer.draw(rng(seed), 8, held_out)]
        drawn[held_out] = {needle.key for needle in needles}, {needle.value for needle in needles}
    assert not drawn[False][0] & drawn[True][0]
    assert not drawn[False][1] & drawn[True][1]
    taught = "".join(sample_texts(language, 500, 0))
    assert not any(key in taught for key in drawn[True][0])
    lists = writer.wording.keys + writer.wording.values
    assert all(len(set(part.split())) == len(part.split()) for part in lists), "a word is listed twice"


@pytest.mark.parametrize("language", LANGUAGES)
def test_needles_of_a_sample_are_told_apart(language: str, tokenizer: Tokenizer) -> None:
    needles = NeedleWriter(language, tokenizer).draw(rng(0), 20, held_out=False)
    assert len({needle.key for needle in needles}) == len({needle.value for needle in needles}) == 20


def trials_of(language: str, length: int, depth: float, streams: dict[str, np.ndarray], writer: NeedleWriter) -> Trial:
    return make_trial(writer, streams[language], length, depth, 3, 4, ("seed", language, length, depth))


@pytest.mark.parametrize("length", [128, 512, 1500])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_trial_has_its_length_and_the_needle_at_its_depth(
    language: str, length: int, streams: dict[str, np.ndarray], tokenizer: Tokenizer
) -> None:
    writer = NeedleWriter(language, tokenizer)
    decoded = [tokenizer.decode([token])[-1:] for token in range(tokenizer.vocab_size)]
    for depth in (0.0, 25.0, 50.0, 75.0, 100.0):
        trial = trials_of(language, length, depth, streams, writer)
        prompt, needle = np.array(trial.prompt), writer.needle(trial.needle)
        stem = writer.question(trial.needle)[0]
        assert len(prompt) == length
        assert (trial.row, trial.column) == (3, 4)
        assert prompt[-len(stem) :].tolist() == stem
        (place,) = find(prompt[: -len(stem)], needle)
        room = length - len(needle) - len(stem)
        assert trial.depth == pytest.approx(100 * place / room)
        text = np.concatenate([prompt[:place], prompt[place + len(needle) : -len(stem)]])
        assert contiguous(text, streams[language])
        ends = [number + 1 for number, token in enumerate(text) if decoded[token] in writer.wording.ends]
        assert place in (0, *ends), "not at a boundary"
        wanted = room * depth / 100
        assert abs(place - wanted) == min(abs(end - wanted) for end in (0, *ends)), "a boundary is nearer"
        assert abs(trial.depth - depth) < 12 or length < 500
        assert tokenizer.decode(trial.prompt).count(trial.needle.value) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_depth_fifty_is_in_the_middle(language: str, streams: dict[str, np.ndarray], tokenizer: Tokenizer) -> None:
    """Walking back to the nearest "." would put every Chinese needle at depth 0."""
    writer = NeedleWriter(language, tokenizer)
    depths = [make_trial(writer, streams[language], 1024, 50.0, 0, 0, (seed,)).depth for seed in range(30)]
    assert 48 < np.mean(depths) < 52
    assert min(depths) > 42
    assert max(depths) < 58


@pytest.mark.parametrize("language", LANGUAGES)
def test_trials_ask_for_held_out_pairs_only(
    language: str, streams: dict[str, np.ndarray], tokenizer: Tokenizer
) -> None:
    writer = NeedleWriter(language, tokenizer)
    training = {needle.key for seed in range(300) for needle in writer.draw(rng(seed), 8, held_out=False)}
    asked = {trials_of(language, 128, float(depth), streams, writer).needle.key for depth in range(40)}
    assert len(asked) > 20
    assert not asked & training


def test_impossible_lengths_are_named(streams: dict[str, np.ndarray], tokenizer: Tokenizer) -> None:
    writer = NeedleWriter("en", tokenizer)
    with pytest.raises(UserError, match="min_length: 9 tokens are too few for a needle"):
        trials_of("en", 9, 50.0, streams, writer)
    with pytest.raises(UserError, match="max_length: 9999999 tokens exceed the haystack"):
        trials_of("en", 9999999, 50.0, streams, writer)
    with pytest.raises(UserError, match="no wording for language 'code'"):
        NeedleWriter("code", tokenizer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_answer_is_exact_or_not(language: str, tokenizer: Tokenizer) -> None:
    writer = NeedleWriter(language, tokenizer)
    needle, other = writer.draw(rng(1), 2, held_out=True)
    _, answer = writer.question(needle)
    more = tokenizer.encode(" The end.\n")
    assert writer.is_exact(needle, [*answer, *more]) == (True, needle.value)
    assert writer.is_exact(other, [*answer, *more]) == (False, needle.value)
    assert not writer.is_exact(needle, answer[:-1])[0], "the value was not closed"
    assert not writer.is_exact(needle, [*more, *answer])[0]
    assert not writer.is_exact(needle, [])[0]


def test_insert_by_hand() -> None:
    text = np.arange(5)
    assert insert(text, [[9], [8, 8], [7]], np.array([0, 3, 3])).tolist() == [9, 0, 1, 2, 8, 8, 7, 3, 4]
    assert insert(text, [[9]], np.array([5])).tolist() == [0, 1, 2, 3, 4, 9]
