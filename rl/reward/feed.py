"""Endless shuffled streams of items as batches for the training loop."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from farside.data.batch import Batch
from farside.data.order import fold, permuted

Item = TypeVar("Item")


class ShuffledFeed(Generic[Item]):
    """Item i of the stream is a function of (seed, name, i): every epoch visits all, in an order of its own.

    collate: a micro-batch of items. per_step: items of all ranks; micro: of a micro-batch.
    """

    def __init__(
        self,
        items: Sequence[Item],
        collate: Callable[[Sequence[Item]], Batch],
        name: str,
        per_step: int,
        micro: int,
        seed: int,
        rank: int,
        size: int,
    ) -> None:
        assert per_step % size == 0
        self.items, self.collate, self.name = items, collate, name
        self.share, self.micro, self.seed, self.rank = per_step // size, micro, seed, rank
        self.per_step = per_step

    def step(self, step: int) -> list[Batch]:
        first = step * self.per_step + self.rank * self.share
        drawn = [self.items[self._number(first + offset)] for offset in range(self.share)]
        return [self.collate(drawn[start : start + self.micro]) for start in range(0, self.share, self.micro)]

    def _number(self, index: int) -> int:
        epoch, within = divmod(index, len(self.items))
        return permuted(within, len(self.items), fold(self.seed, self.name, epoch))
