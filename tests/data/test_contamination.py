"""Leaks are found where they are planted, and nowhere in what training draws."""

from dataclasses import replace

import numpy as np
import pytest

from farside.configs.schema import Config, DataConfig, SourceConfig, TokenizerConfig
from farside.configs.stages import pretrain_stages
from farside.data.batch import Sample, document_sample
from farside.data.order import rng
from farside.data.pack import TextSource
from farside.data.prepare import Prepared, prepare
from farside.data.synthetic import tasks
from farside.data.synthetic.contamination import RUN, Evaluation, look, run_hashes, scan
from farside.data.synthetic.needle import NeedleWriter
from farside.train.phase import make_mixtures, make_sources
from tests.data.conftest import CORPORA


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A part of the shipped texts, so that it is prepared within a second."""
    root = tmp_path_factory.mktemp("contamination")
    sources = {}
    for language in ("en", "zh"):
        (root / language).mkdir()
        for split in ("train", "validation", "haystack"):
            text = (CORPORA / language / f"{split}.txt").read_text(encoding="utf-8")
            (root / language / f"{split}.txt").write_text(text[:30_000], encoding="utf-8")
        sources[language] = SourceConfig(path=str(root / language), language=language)
    tokenizer = TokenizerConfig(vocab_size=1024, needle_texts=500)
    return Config(data=DataConfig(dir=str(root / "prepared"), sources=sources, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def data(config: Config) -> Prepared:
    return Prepared(prepare(config.data))


@pytest.fixture(scope="module")
def evaluation(data: Prepared) -> Evaluation:
    return Evaluation.of(data, ["en", "zh"])


def test_what_training_draws_is_clean(config: Config, data: Prepared, evaluation: Evaluation) -> None:
    sources = make_sources(config, data)
    assert {"needle_en", "tracking_zh", "en"} <= sources.keys()
    assert scan(evaluation, sources, sorted(sources), 600, 6) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_haystack_taken_for_training_text_is_found(language: str, data: Prepared, evaluation: Evaluation) -> None:
    source = TextSource("x", data.tokens(language, "haystack"), data.tokenizer.end_of_text, 0)
    found = scan(evaluation, {"x": source}, ["x"], 64, 8)
    assert {index for _, index, leak in found if leak.kind == "text"} == set(range(8))


def row(tokens: np.ndarray) -> Sample:
    return document_sample(tokens, np.ones(len(tokens), dtype=np.float32), np.arange(len(tokens)) == 0)


@pytest.mark.parametrize("length", [RUN - 1, RUN, RUN + 7])
def test_a_run_is_a_leak_and_a_shorter_one_is_not(length: int, data: Prepared, evaluation: Evaluation) -> None:
    train, haystack = (np.asarray(data.tokens("en", split)).astype(np.int64) for split in ("train", "haystack"))
    assert evaluation.leaks(row(train[:300]), asks=False) == []
    planted = train[:300].copy()
    planted[150 : 150 + length] = haystack[1000 : 1000 + length]
    # a neighbour that happens to go on as the haystack does would lengthen the run
    planted[149], planted[150 + length] = haystack[999] + 1, haystack[1000 + length] + 1
    found = evaluation.leaks(row(planted), asks=False)
    assert [leak.kind for leak in found] == ["text"] * (length >= RUN)
    if found:
        assert found[0].what in data.tokenizer.decode(haystack[990:1040].tolist())


def test_hashes_tell_runs_apart() -> None:
    tokens = rng(0).integers(0, 50, size=4000)
    runs = {tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)}
    assert len(run_hashes(tokens)) == len(tokens) - RUN + 1
    assert len(np.unique(run_hashes(tokens))) == len(runs)
    assert len(run_hashes(tokens[: RUN - 1])) == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_needle_of_the_evaluation_is_found_in_text(language: str, data: Prepared, evaluation: Evaluation) -> None:
    writer = NeedleWriter(language, data.tokenizer)
    text = np.asarray(data.tokens(language, "train"))[:200].astype(np.int64)
    for held_out in (False, True):
        needle = writer.draw(rng(3), 1, held_out)[0]
        planted = np.concatenate([text[:90], writer.needle(needle), text[90:]])
        found = evaluation.leaks(row(planted), asks=False)
        assert [leak.kind for leak in found] == ["needle"] * held_out
        assert not found or found[0].what == f"{needle.key} / {needle.value}"


@pytest.mark.parametrize("kind", ["keyvalue", "documents", "summary", "manyshot", "needle"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_source_that_ignores_the_split_is_found(
    kind: str, language: str, config: Config, data: Prepared, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = NeedleWriter.draw
    monkeypatch.setattr(tasks, "is_held_out", lambda first, second: False)
    monkeypatch.setattr(
        NeedleWriter, "draw", lambda self, generator, count, held_out: draw(self, generator, count, True)
    )
    found = scan(evaluation, make_sources(config, data), [f"{kind}_{language}"], 400, 8)
    assert "pair" in {leak.kind for _, _, leak in found}


def test_a_run_looks_at_every_entry_of_its_stages(config: Config, data: Prepared, evaluation: Evaluation) -> None:
    shares = {"en": 0.4, "needle_zh": 0.3, "mine": 0.3, "zh": 0.0}
    asked = replace(config, data=replace(config.data, mixture=shares, seq_len=400, global_batch_size=4))
    stages = pretrain_stages(asked)
    haystack = TextSource("mine", data.tokens("en", "haystack"), data.tokenizer.end_of_text, 0)
    mixtures = make_mixtures(asked, stages, data, {**make_sources(asked, data), "mine": haystack})
    [found] = look(evaluation, mixtures, 4)
    assert found["entries"] == ["en", "needle_zh", "mine"]
    assert found["leaks"].keys() == {"mine"}
    assert {leak["sample"] for leak in found["leaks"]["mine"]} == {0, 1, 2, 3}
    assert look(evaluation, mixtures, 0)[0]["leaks"] == {}
