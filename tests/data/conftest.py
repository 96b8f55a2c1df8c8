"""A small tokenizer and short real texts, made once a session."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import farside.data
from farside.data.synthetic.needle import sample_texts
from farside.data.tokenizer import Tokenizer

CORPORA = Path(next(iter(farside.data.__path__))) / "corpora"
SIZE = {"en": 120_000, "zh": 40_000}
"""Characters of text a language."""


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    return {name: (CORPORA / name / "haystack.txt").read_text()[:size] for name, size in SIZE.items()}


@pytest.fixture(scope="session")
def tokenizer(texts: dict[str, str]) -> Tokenizer:
    needles = chain.from_iterable(sample_texts(language, 4000, 0) for language in texts)
    return Tokenizer.train(chain(texts.values(), needles), 2048)


@pytest.fixture(scope="session")
def streams(texts: dict[str, str], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Token streams: each paragraph a document closed by end of text."""
    found = {}
    for name, text in texts.items():
        documents = tokenizer.encode_batch([part for part in text.split("\n\n") if part.strip()])
        ids = [token for document in documents for token in (*document, tokenizer.end_of_text)]
        found[name] = np.array(ids, dtype=np.uint16)
    return found
