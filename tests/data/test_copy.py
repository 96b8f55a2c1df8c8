"""Copy samples: only what was seen before carries loss."""

import numpy as np
import pytest

from farside.data.chat import SPECIAL_TOKENS
from farside.data.synthetic.copy import CopySource


@pytest.mark.parametrize("seq_len", [16, 64, 97])
def test_weighted_labels_repeat_an_earlier_span(seq_len: int) -> None:
    source = CopySource(np.arange(100, 1100, dtype=np.uint16), vocab_size=2000, seed=3)
    spans, kinds = set(), set()
    for index in range(40):
        sample = source.sample(index, seq_len)
        stream = np.append(sample.tokens, sample.labels[-1])
        weighted = np.flatnonzero(sample.weights)
        span = int(weighted[0]) + 1
        assert seq_len // 4 <= span <= seq_len // 2
        assert (weighted == np.arange(span - 1, seq_len)).all()
        assert (stream[span:] == stream[:-span]).all()
        assert (stream >= len(SPECIAL_TOKENS)).all()
        assert sample.weights.sum() == pytest.approx(seq_len, rel=1e-6)
        spans.add(span)
        kinds.add(bool(len(np.unique(stream[:span])) == span and np.ptp(stream[:span]) < span))
    assert len(spans) > 2
    assert kinds == {True, False}, "both shuffled text (here consecutive ids) and random ids"


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    tokens = np.arange(100, 1100, dtype=np.uint16)
    first, again, other = (CopySource(tokens, 2000, seed).sample(5, 64) for seed in (1, 1, 2))
    assert (first.tokens == again.tokens).all()
    assert (first.tokens != other.tokens).any()
