"""Which source sample i comes from, and its number there: a function of (seed, i).

Samples come in blocks of 256. A block holds each source as often as its share demands (carrying the rounding
error to the next), in an order permuted by the seed. So shares are exact, and a source's own samples are
numbered without gaps, from nothing but i.
"""

import math
from collections.abc import Mapping
from typing import Protocol

from farside.data.batch import Sample
from farside.data.order import fold, permuted

BLOCK = 256


class Source(Protocol):
    """Samples of one kind: sample ``index`` of length ``seq_len`` is a function of both."""

    def sample(self, index: int, seq_len: int) -> Sample: ...


class Mixture:
    """sources and shares by name (shares need not sum to 1); entries with share 0 are dropped."""

    def __init__(self, sources: Mapping[str, Source], shares: Mapping[str, float], seed: int) -> None:
        self.names = [name for name in sorted(shares) if shares[name] > 0]
        self.sources = [sources[name] for name in self.names]
        total = sum(shares[name] for name in self.names)
        self.shares = [shares[name] / total for name in self.names]
        self.seed = seed

    def _before(self, block: int) -> list[int]:
        """Samples of each source before a block; they sum to 256·block and never fall from block to block.

        Each source in turn takes its rounded part of what those before it left: a part of a growing whole grows,
        where the difference of two rounded cumulative shares may fall, and a number would be used twice.
        """
        counts, left = [], BLOCK * block
        for number, share in enumerate(self.shares[:-1]):
            counts.append(math.floor(left * (share / sum(self.shares[number:])) + 0.5))
            left -= counts[-1]
        return [*counts, left]

    def locate(self, index: int) -> tuple[str, int]:
        """(source name, the source's own sample number) of sample ``index``."""
        number, own = self._locate(index)
        return self.names[number], own

    def _locate(self, index: int) -> tuple[int, int]:
        block, within = divmod(index, BLOCK)
        before, after = self._before(block), self._before(block + 1)
        place = permuted(within, BLOCK, fold(self.seed, "mixture", block))
        for number, (start, end) in enumerate(zip(before, after)):
            if place < end - start:
                return number, start + place
            place -= end - start
        raise AssertionError("a block's shares sum to its size")

    def sample(self, index: int, seq_len: int) -> Sample:
        number, own = self._locate(index)
        return self.sources[number].sample(own, seq_len)
