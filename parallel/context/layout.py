"""Which rank holds which positions, as data.

A layout is a table: the global position in every slot of every rank. Each rank holds L = S/cp slots of every row,
in ascending order of position. All ranks compute the same table from the same (unsharded) documents.

Shapes: N context-parallel ranks, B batch rows, S global sequence, L = S/N local slots.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farside.configs.errors import UserError
from farside.parallel import comm, types
from farside.parallel.context.documents import Documents

SMALLEST_BLOCK = 64
"""Tokens: the balanced layout cuts no finer, because attention kernels lose speed on shorter runs."""
EVEN = 1.02
"""The balanced layout stops refining once the busiest rank has at most this multiple of the mean work."""


@dataclass(frozen=True, eq=False)
class Layout:
    """places_NBL: global position of every slot, ascending along L; over N and L every row is a permutation of S."""

    places_NBL: np.ndarray

    def shard(self, x_BS: Tensor, rank: int) -> Tensor:
        """The local slots of a tensor that starts with [B, S]: [B, L, ...]."""
        places_BL = torch.from_numpy(self.places_NBL[rank]).to(x_BS.device)
        return x_BS[torch.arange(x_BS.shape[0], device=x_BS.device)[:, None], places_BL]

    def unshard(self, x_BL: Tensor, group: comm.Group) -> Tensor:
        """Inverse of shard, on every rank: [B, S, ...]. Collective. Differentiable, for ranks that go on to do the same
        with the whole: its backward is ``shard``."""
        return Unshard.apply(x_BL, self, group)

    def join(self, x_BL: Tensor, group: comm.Group) -> Tensor:
        ranks, rows, slots = self.places_NBL.shape
        gathered = comm.all_gather(x_BL, group).view(ranks, rows, slots, *x_BL.shape[2:])
        x_BS = x_BL.new_empty(rows, ranks * slots, *x_BL.shape[2:])
        places_NBL = torch.from_numpy(self.places_NBL).to(x_BL.device)
        x_BS[torch.arange(rows, device=x_BL.device)[:, None], places_NBL] = gathered
        return x_BS

    def work(self, docs: Documents) -> np.ndarray:
        """(query, key) pairs that every rank's queries see, summed over the rows: [N]."""
        rows = np.arange(self.places_NBL.shape[1])[:, None]
        return docs.pairs_BS[rows, self.places_NBL].sum((1, 2))


class Unshard(torch.autograd.Function):
    """Varying -> Invariant on the context's ranks: all hold the same gradient of the whole and take their slots."""

    @staticmethod
    def spmd_typecheck(out: Tensor, *, x_BL: Tensor, group: comm.Group) -> None:
        types.type_join(out, x_BL, group)

    @staticmethod
    def forward(ctx: Any, x_BL: Tensor, layout: Layout, group: comm.Group) -> Tensor:
        ctx.layout, ctx.rank = layout, comm.rank(group)
        return layout.join(x_BL, group)

    @staticmethod
    def backward(ctx: Any, grad_BS: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layout.shard(grad_BS, ctx.rank), None, None


def contiguous(docs: Documents, ranks: int) -> Layout:
    """Rank r holds the r-th of N chunks: the last rank does (2N - 1)/N times the mean work on one long document."""
    rows, size = docs.starts_BS.shape
    check_length("contiguous", size, ranks)
    return Layout(_of_blocks(np.tile(np.arange(ranks), (rows, 1)), ranks, size))


def zigzag(docs: Documents, ranks: int) -> Layout:
    """Rank r holds chunks r and 2N - 1 - r of 2N: even for one document, not under document masks."""
    rows, size = docs.starts_BS.shape
    check_length("zigzag", size, ranks)
    return Layout(_of_blocks(np.tile(np.r_[np.arange(ranks), np.arange(ranks)[::-1]], (rows, 1)), ranks, size))


def balanced(docs: Documents, ranks: int, smallest: int = SMALLEST_BLOCK) -> Layout:
    """Every row is cut into blocks that are dealt out so that the pairs seen, over all rows together, are even.

    The coarsest blocks that come within EVEN are taken, else the evenest found: long runs keep kernels fast. A row
    always has equally many blocks on every rank, so L = S/N; loads carry over from row to row.
    smallest: tokens of the finest block tried.
    """
    rows, size = docs.starts_BS.shape
    check_length("balanced", size, ranks)
    local = size // ranks
    best, least = None, np.inf
    for blocks in (count for count in range(1, local + 1) if local % count == 0):
        if best is not None and local // blocks < smallest:
            break
        work_BK = docs.pairs_BS.reshape(rows, ranks * blocks, -1).sum(-1)
        owner_BK, load_N = _deal(work_BK, ranks)
        if load_N.max() < least:
            best, least = owner_BK, load_N.max()
        if least <= EVEN * load_N.mean():
            break
    assert best is not None
    return Layout(_of_blocks(best, ranks, size))


def _deal(work_BK: np.ndarray, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest block first, to the least loaded rank that still has room in the block's row: owners and loads."""
    rows, blocks = work_BK.shape
    owner_BK = np.empty((rows, blocks), dtype=np.int64)
    room = [[blocks // ranks] * ranks for _ in range(rows)]
    load = [0] * ranks
    for flat in np.argsort(-work_BK, axis=None, kind="stable").tolist():
        row, block = divmod(flat, blocks)
        rank = min((rank for rank in range(ranks) if room[row][rank]), key=load.__getitem__)
        owner_BK[row, block] = rank
        room[row][rank] -= 1
        load[rank] += int(work_BK[row, block])
    return owner_BK, np.array(load)


def _of_blocks(owner_BK: np.ndarray, ranks: int, size: int) -> np.ndarray:
    """places_NBL from the owner of each of a row's equal blocks."""
    rows, blocks = owner_BK.shape
    owner_BS = owner_BK.repeat(size // blocks, axis=1)
    order_BS = np.argsort(owner_BS, axis=1, kind="stable")  # stable: each rank's positions ascend
    return np.ascontiguousarray(order_BS.reshape(rows, ranks, -1).swapaxes(0, 1))


LAYOUTS: dict[str, Callable[[Documents, int], Layout]] = {
    "contiguous": contiguous,
    "zigzag": zigzag,
    "balanced": balanced,
}


def check_length(layout: str, size: int, ranks: int) -> None:
    """Raises UserError unless sequences of ``size`` tokens can be laid out so."""
    chunks, words = (2 * ranks, "2·cp") if layout == "zigzag" else (ranks, "cp")
    if size % chunks:
        raise UserError(
            f"parallel.context.layout={layout}: the sequence length must divide by {words} = {chunks}, got {size}"
        )
