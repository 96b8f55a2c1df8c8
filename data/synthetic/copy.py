"""Copying: a span of tokens, repeated to the end of the sample. A few hundred steps of it build the induction circuit
(Olsson et al., arXiv 2209.11895) that retrieval needs; without them its onset is a matter of luck.
"""

import numpy as np

from farside.data.batch import Sample, document_sample
from farside.data.chat import SPECIAL_TOKENS
from farside.data.joined import Joined
from farside.data.order import rng


class CopySource:
    """Spans of S/4 to S/2 tokens, half of them uniformly random ids, half shuffled real text, so that nothing but
    looking back tells the next token. Only repeated tokens carry loss; a sample weighs S as a window of text does.

    tokens [T]: the text to shuffle.
    """

    def __init__(self, tokens: np.ndarray | Joined, vocab_size: int, seed: int) -> None:
        self.tokens, self.vocab_size, self.seed = tokens, vocab_size, seed

    def sample(self, index: int, seq_len: int) -> Sample:
        generator = rng(self.seed, "copy", seq_len, index)
        span = int(generator.integers(seq_len // 4, seq_len // 2 + 1))
        if generator.random() < 0.5:
            piece = generator.integers(len(SPECIAL_TOKENS), self.vocab_size, size=span)
        else:
            start = generator.integers(len(self.tokens) - span)
            piece = generator.permutation(np.asarray(self.tokens[start : start + span]))
        tokens = np.resize(piece.astype(np.int64), seq_len + 1)
        weights = np.zeros(seq_len + 1, dtype=np.float32)
        weights[span:] = seq_len / (seq_len + 1 - span)
        starts = np.zeros(seq_len + 1, dtype=bool)
        starts[0] = True
        return document_sample(tokens, weights, starts)
