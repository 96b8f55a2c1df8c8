"""Sums over whole sequences of a batch, where several may be packed into a row. Shapes: B rows, S positions."""

import torch
from torch import Tensor


class Sequences:
    """The sequences of [B, S] rows: runs of equal ``doc_ids``. Only ``counted_BS`` positions enter sums.

    A sequence never spans rows, so that whatever is computed per sequence does not depend on how sequences are packed,
    padded or cut into micro-batches.
    """

    def __init__(self, doc_ids_BS: Tensor, counted_BS: Tensor) -> None:
        starts_BS = torch.ones_like(doc_ids_BS, dtype=torch.bool)
        starts_BS[:, 1:] = doc_ids_BS[:, 1:] != doc_ids_BS[:, :-1]
        self.index_BS = (starts_BS.flatten().cumsum(0) - 1).view_as(doc_ids_BS)
        self.counted_BS = counted_BS

    def sum(self, values_BS: Tensor) -> Tensor:
        """[B, S]: at each position the sum over its sequence's counted positions; differentiable."""
        kept = torch.where(self.counted_BS, values_BS, 0.0).flatten()
        # as many slots as positions: to count the sequences first would wait for the device
        sums = torch.zeros_like(kept).index_add(0, self.index_BS.flatten(), kept)
        return sums[self.index_BS]

    def mean(self, values_BS: Tensor) -> Tensor:
        """[B, S]: as ``sum``, over the number of counted positions; 0 where there are none."""
        return self.sum(values_BS) / self.sum(torch.ones_like(values_BS)).clamp(min=1.0)
