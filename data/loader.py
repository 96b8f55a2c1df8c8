"""From a mixture to this rank's micro-batches. Step k uses samples [kB, (k+1)B), whatever the mesh."""

from farside.data.batch import Batch
from farside.data.mixture import Mixture


class Loader:
    """The only state is the step the caller asks for.

    global_batch: samples a step over all ranks, a multiple of ``size``; micro_batch: rows of one Batch at most.
    """

    def __init__(
        self, mixture: Mixture, seq_len: int, global_batch: int, micro_batch: int, rank: int, size: int
    ) -> None:
        assert global_batch % size == 0
        self.mixture, self.seq_len, self.micro_batch = mixture, seq_len, micro_batch
        self.global_batch, self.rank, self.size = global_batch, rank, size

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of step ``step`` (from 0): equal numbers on every rank."""
        rows = self.global_batch // self.size
        first = step * self.global_batch + self.rank * rows
        return [
            self._batch(first + start, min(self.micro_batch, rows - start))
            for start in range(0, rows, self.micro_batch)
        ]

    def _batch(self, first: int, rows: int) -> Batch:
        return Batch.gathered(rows, lambda row: self.mixture.sample(first + row, self.seq_len))
