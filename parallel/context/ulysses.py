"""Ulysses: an all-to-all turns [all heads of some tokens] into [some heads of all tokens], and back.

Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509. Key/value heads that do not divide by the ranks are repeated up to
lcm(K, N) heads first, so that every rank gets the ones its queries need; autograd sums their gradients.

Shapes: N ranks, B batch, L local slots, M = N·L slots of all ranks, H heads, K key/value heads, D head dim.
"""

import math
from typing import Any

import torch
from torch import Tensor

from farside.configs.errors import UserError
from farside.parallel import comm, types
from farside.parallel.context.sharded import BytesSent


def scatter_heads(x_BLHD: Tensor, order_BM: Tensor | None, group: comm.Group) -> Tensor:
    """[B, L, H, D] -> [B, M, H/N, D], slots in ascending position.

    order_BM: for every slot in ascending position its place in rank-major order; None where they agree already.
    """
    ranks = comm.size(group)
    x_NBLhD = x_BLHD.unflatten(2, (ranks, -1)).movedim(2, 0)  # [B, L, H, D] -> [N, B, L, H/N, D]
    x_BMhD = comm.all_to_all(x_NBLhD, group).movedim(0, 1).flatten(1, 2)
    return x_BMhD if order_BM is None else Reorder.apply(x_BMhD, order_BM, False)


def gather_heads(x_BMhD: Tensor, order_BM: Tensor | None, group: comm.Group) -> Tensor:
    """Inverse of scatter_heads: [B, M, H/N, D] -> [B, L, H, D]."""
    ranks = comm.size(group)
    if order_BM is not None:
        x_BMhD = Reorder.apply(x_BMhD, order_BM, True)
    x_NBLhD = x_BMhD.unflatten(1, (ranks, -1)).movedim(1, 0)
    return comm.all_to_all(x_NBLhD, group).movedim(0, 2).flatten(2, 3)  # [N, B, L, H/N, D] -> [B, L, H, D]


def repeat_kv(x_BLKD: Tensor, ranks: int) -> Tensor:
    """Key/value heads repeated to lcm(K, N): query head h still uses head h // (heads / kv heads)."""
    times = math.lcm(x_BLKD.shape[2], ranks) // x_BLKD.shape[2]
    return x_BLKD.repeat_interleave(times, dim=2) if times > 1 else x_BLKD


class Reorder(torch.autograd.Function):
    """A permutation of every row's slots, or back; its backward is the inverse permutation, not a scatter-add."""

    @staticmethod
    def spmd_typecheck(out: Tensor, *, x_BM: Tensor, order_BM: Tensor) -> None:
        types.type_permutation(out, x_BM, order_BM)

    @staticmethod
    def forward(ctx: Any, x_BM: Tensor, order_BM: Tensor, back: bool) -> Tensor:
        ctx.save_for_backward(order_BM)
        ctx.back = back
        return _take(x_BM, order_BM.argsort(1) if back else order_BM)

    @staticmethod
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor, None, None]:
        (order_BM,) = ctx.saved_tensors
        return _take(grad_BM, order_BM if ctx.back else order_BM.argsort(1)), None, None


def _take(x_BM: Tensor, order_BM: Tensor) -> Tensor:
    rows, size = order_BM.shape
    flat = (order_BM + size * torch.arange(rows, device=order_BM.device)[:, None]).flatten()
    return x_BM.flatten(0, 1).index_select(0, flat).view(x_BM.shape)


def check_heads(heads: int, kv_heads: int, ranks: int) -> None:
    """Raises UserError unless the heads divide over the ranks."""
    if heads % kv_heads:
        raise UserError(f"model.kv_heads: heads = {heads} must divide by kv_heads = {kv_heads}")
    if heads % ranks:
        raise UserError(f"parallel.context: ulysses over {ranks} ranks needs heads divisible by {ranks}, got {heads}")


def bytes_sent(
    rows: int, local: int, heads: int, kv_heads: int, head_dim: int, ranks: int, dtype: torch.dtype
) -> BytesSent:
    """Bytes that each rank sends in one forward and in one backward: queries, output and repeated keys and values."""
    if ranks == 1:
        return {}, {}
    sent = 2 * (heads + math.lcm(kv_heads, ranks)) * rows * local * head_dim * (ranks - 1) // ranks * dtype.itemsize
    return {"all_to_all": sent}, {"all_to_all": sent}
