"""What all kinds of more than one rank share: the layout.

Shapes: N ranks, B batch, S global sequence, L = S/N local slots.
"""

import numpy as np
from torch import Tensor

from farside.parallel import comm
from farside.parallel.context.documents import Documents
from farside.parallel.context.layout import LAYOUTS, Layout

BytesSent = tuple[dict[str, int], dict[str, int]]
"""By collective, in one forward and in one backward of ``attend``, from each rank."""


class Sharded:
    """layout: a name of LAYOUTS. group: all ranks of the context."""

    def __init__(self, layout: str, group: comm.Group) -> None:
        self.make_layout, self.group = LAYOUTS[layout], group
        self.size, self.rank = comm.size(group), comm.rank(group)

    def layout(self, docs: Documents) -> Layout:
        return docs.planned((self, "layout"), lambda: self.make_layout(docs, self.size))

    def shard(self, x_BS: Tensor, docs: Documents) -> Tensor:
        return self.layout(docs).shard(x_BS, self.rank)

    def unshard(self, x_BL: Tensor, docs: Documents) -> Tensor:
        return self.layout(docs).unshard(x_BL, self.group)

    def work(self, docs: Documents) -> np.ndarray:
        return self.layout(docs).work(docs)
