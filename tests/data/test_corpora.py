"""The shipped texts: what is evaluated on was never trained on."""

from itertools import combinations

import pytest

from farside.configs.schema import SourceConfig
from farside.data.sources import SPLITS
from tests.data.documents import read_source

RUN = 60
"""Characters that two splits may not share in a row."""


def normal(documents: list[str]) -> str:
    return " ".join(" ".join(documents).split())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_splits_share_no_run_of_text(language: str) -> None:
    """Exact for the two held-out splits; of the training text, every seventh place."""
    texts = {
        split: normal(docs)
        for split, docs in read_source(language, SourceConfig(path=f"data/corpora/{language}")).items()
    }
    assert texts.keys() == set(SPLITS)
    runs = {split: {texts[split][i : i + RUN] for i in range(len(texts[split]) - RUN)} for split in SPLITS[1:]}
    runs["train"] = {texts["train"][i : i + RUN] for i in range(0, len(texts["train"]) - RUN, 7)}
    for one, other in combinations(SPLITS, 2):
        assert not runs[one] & runs[other], f"{one} and {other} share text"
    assert min(len(text) for text in texts.values()) > 30_000


@pytest.mark.parametrize(("language", "share"), [("en", 0.0), ("zh", 0.8)])
def test_languages_are_what_they_say(language: str, share: float) -> None:
    for documents in read_source(language, SourceConfig(path=f"data/corpora/{language}")).values():
        text = normal(documents)
        chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in text) / len(text)
        assert share <= chinese <= share + 0.15
