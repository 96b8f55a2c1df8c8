"""All-gather attention: every rank gathers all keys and values, and attends with its own queries.

As in "The Llama 3 Herd of Models", arXiv 2407.21783, section 3.3.2. The backward gathers again rather than keep S keys
per layer, and dK, dV go home by a reduce-scatter in fp32 (fp64 for fp64 inputs).

Shapes: N ranks, B batch, L local slots, S = N·L, H heads, K key/value heads, D head dim.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from farside.parallel import comm, types
from farside.parallel.context import kernels, tiles
from farside.parallel.context.documents import Documents
from farside.parallel.context.kernels import Kernel, backward_tiles, forward_tiles
from farside.parallel.context.ring import accumulator_dtype
from farside.parallel.context.sharded import BytesSent, Sharded
from farside.parallel.context.tiles import Steps


class GatherAttention(torch.autograd.Function):
    """apply(q, k, v, steps, places, group, kernel) -> out, like q.

    steps: one, against keys in global order. places_NBL: global position of every rank's slots, on q's device.
    """

    @staticmethod
    def spmd_typecheck(
        out: Tensor, *, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, places_NBL: Tensor, group: comm.Group
    ) -> None:
        types.type_ignored(places_NBL)
        types.type_attention(out, q_BLHD, k_BLKD, v_BLKD, group)

    @staticmethod
    def forward(
        ctx: Any,
        q_BLHD: Tensor,
        k_BLKD: Tensor,
        v_BLKD: Tensor,
        steps: Steps,
        places_NBL: Tensor,
        group: comm.Group,
        kernel: Kernel,
    ) -> Tensor:
        exact = accumulator_dtype(q_BLHD.dtype)
        out = torch.zeros_like(q_BLHD, dtype=exact if steps.merges else q_BLHD.dtype)
        lse = q_BLHD.new_full(q_BLHD.shape[:3], float("-inf"), dtype=exact)
        k_BSKD, v_BSKD = gather_kv(k_BLKD, v_BLKD, places_NBL, group)
        forward_tiles(kernel, q_BLHD, k_BSKD, v_BSKD, steps.tiles[0], out, lse)
        out = out.to(q_BLHD.dtype)
        ctx.save_for_backward(q_BLHD, k_BLKD, v_BLKD, out, lse, places_NBL)
        ctx.steps, ctx.group, ctx.kernel = steps, group, kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, places_NBL = ctx.saved_tensors
        exact = accumulator_dtype(q.dtype)
        k_BSKD, v_BSKD = gather_kv(k, v, places_NBL, ctx.group)
        dq = torch.zeros_like(q, dtype=exact)
        dk, dv = (torch.zeros_like(x, dtype=exact) for x in (k_BSKD, v_BSKD))
        backward_tiles(ctx.kernel, grad_BLHD, q, k_BSKD, v_BSKD, out, lse, ctx.steps.tiles[0], dq, dk, dv)
        rows_B1 = torch.arange(q.shape[0], device=q.device)[:, None]
        dkv_NBL2KD = torch.stack([x[rows_B1, places_NBL] for x in (dk, dv)], dim=3)
        dkv_BL2KD = comm.reduce_scatter(dkv_NBL2KD, ctx.group)[0]
        return dq.to(q.dtype), *(x.to(k.dtype) for x in dkv_BL2KD.unbind(2)), None, None, None, None


def gather_kv(k_BLKD: Tensor, v_BLKD: Tensor, places_NBL: Tensor, group: comm.Group) -> tuple[Tensor, Tensor]:
    """Keys and values of all ranks in global order: [B, S, K, D] each."""
    ranks, rows, local = places_NBL.shape
    kv_NBL2KD = comm.all_gather(torch.stack([k_BLKD, v_BLKD], dim=2)[None], group)
    kv_BS2KD = k_BLKD.new_empty(rows, ranks * local, *kv_NBL2KD.shape[3:])
    kv_BS2KD[torch.arange(rows, device=k_BLKD.device)[:, None], places_NBL] = kv_NBL2KD
    return kv_BS2KD[:, :, 0], kv_BS2KD[:, :, 1]


class AllGather(Sharded):
    """Implements ``ContextParallel``."""

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        places_NBL = self.layout(docs).places_NBL
        steps = docs.planned((self, "steps"), lambda: tiles.plan(docs, places_NBL[self.rank], [docs.places_BS]))
        on_device = docs.planned((self, q_BLHD.device), lambda: torch.from_numpy(places_NBL).to(q_BLHD.device))
        kernel = kernels.choose(q_BLHD)
        return GatherAttention.apply(q_BLHD, k_BLKD, v_BLKD, steps, on_device, self.group, kernel)

    def bytes_sent(
        self, rows: int, size: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BytesSent:
        return bytes_sent(rows, size // self.size, kv_heads, head_dim, self.size, dtype)


def bytes_sent(rows: int, local: int, kv_heads: int, head_dim: int, ranks: int, dtype: torch.dtype) -> BytesSent:
    """Bytes that each rank sends in one forward and in one backward, by collective (the names that comm counts)."""
    elements = 2 * rows * local * kv_heads * head_dim * (ranks - 1)
    gathered = elements * dtype.itemsize
    return (
        {"all_gather": gathered},
        {"all_gather": gathered, "reduce_scatter": elements * accumulator_dtype(dtype).itemsize},
    )
