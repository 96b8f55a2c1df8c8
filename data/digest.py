"""What a step trained on, in one number: equal streams show equal numbers on every mesh, and a lost, repeated or
swapped sample shows at the step where it happens."""

import struct
import zlib
from collections.abc import Sequence

from torch import Tensor

from farside.data.batch import Batch


def batch_digest(batches: Sequence[Batch], first: int) -> float:
    """Sum of a 32-bit hash of each sample: its number in the step, tokens, labels, document ids and weights.

    first: number in the step of the first row. A whole number below 2^53 for up to 2^21 samples, so float64 holds it
    exactly, and sums over micro-batches and ranks in any order are exact too. Rows padded for a mesh (document -1)
    hash as they were before.
    """
    total = 0
    for batch in batches:
        sizes = (batch.doc_ids >= 0).sum(dim=1).tolist()
        for row, size in enumerate(sizes):
            if size:
                checksum = zlib.crc32(struct.pack("<q", first))
                for part in (batch.tokens.int(), batch.labels.int(), batch.doc_ids.int(), batch.weights.float()):
                    checksum = zlib.crc32(_bytes(part[row, :size]), checksum)
                total += checksum
                first += 1
    return float(total)


def _bytes(row: Tensor) -> memoryview:
    return row.contiguous().numpy().data
