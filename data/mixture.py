"""Which source sample i comes from, and its number there: a function of (seed, i).

Samples come in blocks of 256. A block holds each source as often as its share demands (carrying the rounding
error to the next), in an order permuted by the seed. So shares are exact, and a source's own samples are
numbered without gaps, from nothing but i.

A source may have an end (``most``). Where it lies is planned ahead: the block that holds it gives what is left, later
blocks go by the shares of the others. There are at most as many such stretches as sources, so that i is still all
the state.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from farside.configs.errors import UserError
from farside.data.batch import Sample
from farside.data.order import fold, permuted

BLOCK = 256


class Source(Protocol):
    """Samples of one kind: sample ``index`` of length ``seq_len`` is a function of both."""

    def sample(self, index: int, seq_len: int) -> Sample: ...


@dataclass(frozen=True)
class Stretch:
    """Blocks from ``block`` on, with ``counts`` samples of each source before them, by the shares of ``active``."""

    block: int
    counts: list[int]
    active: list[int]


class Mixture:
    """sources and shares by name (shares need not sum to 1); entries with share 0 are dropped.

    first: a source's own number to begin with, 0 if not named. most: samples that it gives at most.
    ``size``: samples there are; infinite if a source has no end.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        shares: Mapping[str, float],
        seed: int,
        first: Mapping[str, int] | None = None,
        most: Mapping[str, int] | None = None,
    ) -> None:
        self.names = [name for name in sorted(shares) if shares[name] > 0]
        self.sources = [sources[name] for name in self.names]
        total = sum(shares[name] for name in self.names)
        self.shares = [shares[name] / total for name in self.names]
        self.seed = seed
        self.first = [(first or {}).get(name, 0) for name in self.names]
        self.most = [(most or {}).get(name, math.inf) for name in self.names]
        self._block: tuple[int, list[int], list[int], int] = (-1, [], [], 0)  # the block last asked for
        self.stretches = [Stretch(0, [0] * len(self.names), list(range(len(self.names))))]
        while (ending := self._end(self.stretches[-1])) is not None:
            self.stretches.append(ending)
        last = self.stretches[-1]
        self.size = math.inf if last.active else sum(last.counts)

    def _parts(self, count: int, active: Sequence[int]) -> list[int]:
        """``count`` samples over the active sources; none falls as ``count`` grows.

        Each source in turn takes its rounded part of what those before it left: a part of a growing whole grows,
        where the difference of two rounded cumulative shares may fall, and a number would be used twice.
        """
        counts, left = [0] * len(self.names), count
        for place, number in enumerate(active[:-1]):
            share = self.shares[number] / sum(self.shares[other] for other in active[place:])
            counts[number] = math.floor(left * share + 0.5)
            left -= counts[number]
        counts[active[-1]] = left
        return counts

    def _along(self, stretch: Stretch, block: int) -> list[int]:
        parts = self._parts(BLOCK * (block - stretch.block), stretch.active)
        return [before + part for before, part in zip(stretch.counts, parts)]

    def _end(self, stretch: Stretch) -> Stretch | None:
        """The stretch after this one, which the next source to end begins; None: this one goes on for ever."""
        if all(self.most[number] == math.inf for number in stretch.active):
            return None
        within = lambda block: all(n <= most for n, most in zip(self._along(stretch, block), self.most))  # noqa: E731
        step = 1
        while within(stretch.block + step):
            step *= 2
        low, high = stretch.block + step // 2, stretch.block + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if within(middle) else (low, middle)
        counts, room, active = self._along(stretch, low), BLOCK, list(stretch.active)
        wanted = [after - before for before, after in zip(counts, self._along(stretch, low + 1))]
        while over := [number for number in active if counts[number] + wanted[number] > self.most[number]]:
            for number in over:
                room -= int(self.most[number]) - counts[number]
                counts[number] = int(self.most[number])
                active.remove(number)
            if not active:
                return Stretch(low + 1, counts, [])
            wanted = self._parts(room, active)
        return Stretch(low + 1, [count + wanted[n] * (n in active) for n, count in enumerate(counts)], active)

    def before(self, block: int) -> list[int]:
        """Samples of each source before a block; none falls from block to block."""
        stretch = next(stretch for stretch in reversed(self.stretches) if stretch.block <= block)
        return list(stretch.counts) if block == stretch.block else self._along(stretch, block)

    def reserved(self, samples: int) -> dict[str, int]:
        """Own numbers, of each source, that the first ``samples`` may use: those of whole blocks."""
        return dict(zip(self.names, self.before(-(-samples // BLOCK))))

    def counts(self, samples: int) -> dict[str, int]:
        """How many of the first ``samples`` are of each source."""
        block, rest = divmod(samples, BLOCK)
        counts = self.before(block)
        for index in range(samples - rest, samples):
            counts[self._locate(index)[0]] += 1
        return dict(zip(self.names, counts))

    def locate(self, index: int) -> tuple[str, int]:
        """(source name, the source's own sample number) of sample ``index``."""
        number, own = self._locate(index)
        return self.names[number], own

    def _locate(self, index: int) -> tuple[int, int]:
        if index >= self.size:
            raise UserError(
                f"sample {index:,} asked for, but max_epochs of all sources end at {self.size:,.0f}; raise one"
            )
        block, within = divmod(index, BLOCK)
        if block != self._block[0]:
            self._block = block, self.before(block), self.before(block + 1), fold(self.seed, "mixture", block)
        _, before, after, seed = self._block
        place = permuted(within, sum(after) - sum(before), seed)
        for number, (start, end) in enumerate(zip(before, after)):
            if place < end - start:
                return number, self.first[number] + start + place
            place -= end - start
        raise AssertionError("a block's shares sum to its size")

    def sample(self, index: int, seq_len: int) -> Sample:
        number, own = self._locate(index)
        return self.sources[number].sample(own, seq_len)
