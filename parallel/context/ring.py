"""Ring attention: keys and values travel round the ranks while each rank attends to what it holds.

Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers", arXiv 2310.01889. Partial outputs merge by their
logsumexp; the backward recomputes each tile from the output and logsumexp over all keys. Accumulators are fp32 (fp64
for fp64 inputs), also those of dK and dV while they travel: in bf16 the error would grow with the ring
(ring-flash-attention#42). On one rank nothing travels, and this is attention on packed documents.

Shapes: N ranks of the ring, B batch, L local slots, H heads, K key/value heads, D head dim.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from farside.parallel import comm, types
from farside.parallel.context import kernels, tiles
from farside.parallel.context.documents import Documents
from farside.parallel.context.kernels import Kernel, backward_tiles, forward_tiles
from farside.parallel.context.sharded import BytesSent, Sharded
from farside.parallel.context.tiles import Steps


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class RingAttention(torch.autograd.Function):
    """apply(q, k, v, steps, group, kernel) -> out, like q. Step s holds the tiles against rank r - s of the ring."""

    @staticmethod
    def spmd_typecheck(out: Tensor, *, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, group: comm.Group) -> None:
        types.type_attention(out, q_BLHD, k_BLKD, v_BLKD, group)

    @staticmethod
    def forward(
        ctx: Any, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, steps: Steps, group: comm.Group, kernel: Kernel
    ) -> Tensor:
        exact = accumulator_dtype(q_BLHD.dtype)
        out = torch.zeros_like(q_BLHD, dtype=exact if steps.merges else q_BLHD.dtype)
        lse = q_BLHD.new_full(q_BLHD.shape[:3], float("-inf"), dtype=exact)
        last = len(steps.tiles) - 1
        kv: Sequence[Tensor] = (k_BLKD, v_BLKD)
        for step, step_tiles in enumerate(steps.tiles):
            following = comm.shift(kv, group) if step < last else None  # travels while we compute
            forward_tiles(kernel, q_BLHD, kv[0], kv[1], step_tiles, out, lse)
            if following is not None:
                kv = following.wait()
        out = out.to(q_BLHD.dtype)
        ctx.save_for_backward(q_BLHD, k_BLKD, v_BLKD, out, lse)
        ctx.steps, ctx.group, ctx.kernel = steps, group, kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        steps, group, kernel = ctx.steps, ctx.group, ctx.kernel
        last = len(steps.tiles) - 1
        exact = accumulator_dtype(q.dtype) if steps.merges or last > 0 else q.dtype
        dq, *home = (torch.zeros_like(x, dtype=exact) for x in (q, k, v))
        kv: Sequence[Tensor] = (k, v)
        travelling = None
        for step, step_tiles in enumerate(steps.tiles):
            following = comm.shift(kv, group) if step < last else None
            # our own block's gradient stays at home, the others' pass by: each rank adds its share and sends on
            dkv = [torch.zeros_like(x) for x in home] if step else home
            backward_tiles(kernel, grad_BLHD, q, kv[0], kv[1], out, lse, step_tiles, dq, dkv[0], dkv[1])
            if travelling is not None:
                torch._foreach_add_(dkv, list(travelling.wait()))
            if step:
                travelling = comm.shift(dkv, group)
            if following is not None:
                kv = following.wait()
        if travelling is not None:
            torch._foreach_add_(home, list(travelling.wait()))
        return dq.to(q.dtype), *(x.to(k.dtype) for x in home), None, None, None


class Ring(Sharded):
    """Implements ``ContextParallel``."""

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        steps = docs.planned((self, "steps"), lambda: ring_steps(docs, self.layout(docs).places_NBL, self.rank))
        kernel = kernels.choose(q_BLHD)
        return RingAttention.apply(q_BLHD, k_BLKD, v_BLKD, steps, self.group, kernel)

    def bytes_sent(
        self, rows: int, size: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BytesSent:
        return bytes_sent(rows, size // self.size, kv_heads, head_dim, self.size, dtype)


def ring_steps(docs: Documents, places_NBL: np.ndarray, rank: int) -> Steps:
    """Step s meets the keys of rank - s."""
    ranks = len(places_NBL)
    return tiles.plan(docs, places_NBL[rank], [places_NBL[(rank - step) % ranks] for step in range(ranks)])


def bytes_sent(rows: int, local: int, kv_heads: int, head_dim: int, ranks: int, dtype: torch.dtype) -> BytesSent:
    """Bytes that each rank sends in one forward and in one backward, by collective (the names that comm counts).

    Keys and values hop N - 1 times in both; in the backward their gradients hop N - 1 times in the accumulators' type.
    """
    if ranks == 1:
        return {}, {}
    elements = 2 * rows * local * kv_heads * head_dim * (ranks - 1)
    forward = elements * dtype.itemsize
    return {"shift": forward}, {"shift": forward + elements * accumulator_dtype(dtype).itemsize}
