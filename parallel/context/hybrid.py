"""Ulysses groups that form a ring: heads divide over one axis of ranks, the sequence over the other.

Fang and Zhao, "USP: A Unified Sequence Parallelism Approach", arXiv 2405.07719. Rank = ring rank · U + Ulysses rank.
After the all-to-all the U ranks of a Ulysses group all hold the union of their slots, for different heads, and it is
these unions that travel round the ring. A ring of one rank is plain Ulysses.

Shapes: R ring ranks, U Ulysses ranks, N = R·U, B batch, L local slots, M = U·L, H heads, K key/value heads, D head dim.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farside.parallel import comm
from farside.parallel.context import kernels, ring, ulysses
from farside.parallel.context.documents import Documents
from farside.parallel.context.ring import RingAttention, ring_steps
from farside.parallel.context.sharded import BytesSent, Sharded
from farside.parallel.context.tiles import Steps


@dataclass(frozen=True, eq=False)
class _Plan:
    """order_BM: see scatter_heads."""

    steps: Steps
    order_BM: Tensor | None


class Hybrid(Sharded):
    """Implements ``ContextParallel``. group: all N ranks; ring, ulysses: this rank's groups along the two axes."""

    def __init__(self, layout: str, group: comm.Group, ring: comm.Group, ulysses: comm.Group) -> None:
        super().__init__(layout, group)
        self.ring, self.ulysses = ring, ulysses
        assert comm.size(ring) * comm.size(ulysses) == self.size
        assert self.rank == comm.rank(ring) * comm.size(ulysses) + comm.rank(ulysses)

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        ranks = comm.size(self.ulysses)
        ulysses.check_heads(q_BLHD.shape[2], k_BLKD.shape[2], ranks)
        plan = docs.planned((self, q_BLHD.device), lambda: self._plan(docs, q_BLHD.device))
        kernel = kernels.choose(q_BLHD)
        k_BLKD, v_BLKD = (ulysses.repeat_kv(x, ranks) for x in (k_BLKD, v_BLKD))
        q, k, v = (ulysses.scatter_heads(x, plan.order_BM, self.ulysses) for x in (q_BLHD, k_BLKD, v_BLKD))
        out_BMhD = RingAttention.apply(q, k, v, plan.steps, self.ring, kernel)
        return ulysses.gather_heads(out_BMhD, plan.order_BM, self.ulysses)

    def _plan(self, docs: Documents, device: torch.device) -> _Plan:
        places_NBL = self.layout(docs).places_NBL
        _, rows, local = places_NBL.shape
        places_RUBL = places_NBL.reshape(comm.size(self.ring), -1, rows, local)
        places_RBM = places_RUBL.swapaxes(1, 2).reshape(comm.size(self.ring), rows, -1)
        order_RBM = places_RBM.argsort(axis=2)
        steps = ring_steps(docs, np.take_along_axis(places_RBM, order_RBM, axis=2), comm.rank(self.ring))
        order_BM = order_RBM[comm.rank(self.ring)]
        sorted_already = (order_BM == np.arange(order_BM.shape[1])).all()
        return _Plan(steps, None if sorted_already else torch.from_numpy(order_BM).to(device))

    def work(self, docs: Documents) -> np.ndarray:
        """The ranks of a Ulysses group share the work of all their queries, by heads."""
        return super().work(docs).reshape(comm.size(self.ring), -1).mean(1).repeat(comm.size(self.ulysses))

    def bytes_sent(
        self, rows: int, size: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BytesSent:
        ranks, rings = comm.size(self.ulysses), comm.size(self.ring)
        exchange = ulysses.bytes_sent(rows, size // self.size, heads, kv_heads, head_dim, ranks, dtype)
        kv_local = math.lcm(kv_heads, ranks) // ranks
        round_trip = ring.bytes_sent(rows, size // rings, kv_local, head_dim, rings, dtype)
        return exchange[0] | round_trip[0], exchange[1] | round_trip[1]


class Ulysses(Hybrid):
    """Implements ``ContextParallel``: a ring of one."""

    def __init__(self, layout: str, group: comm.Group) -> None:
        super().__init__(layout, group, ring=None, ulysses=group)
