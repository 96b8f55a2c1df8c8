"""Dense attention on one tile, with its logsumexp, so that tiles merge exactly.

A kernel is a pair of functions on [B, H, L, D] views. Tiles hold no masks (tiles.py), so a kernel needs only
"causal" (equally many queries and keys) and "all". Its backward takes the output and logsumexp over *all* tiles of
the queries, and so returns this tile's share of the gradients.

``flash-attn`` would be a fourth pair here: its functions return and take (out, softmax_lse) in the same way.

Shapes: B batch, H heads, K key/value heads, L queries, M keys, D head dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from farside.parallel.context.tiles import Tile

aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """forward(q, k, v, causal) -> out [B, H, L, D], logsumexp [B, H, L] (at least fp32).

    backward(grad, q, k, v, out, logsumexp, causal) -> gradients of q, k, v. Scores are scaled by 1/sqrt(D).
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def _cpu_flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)


def _cpu_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if q.dtype in (torch.bfloat16, torch.float16):  # on views it takes up to 55 % longer, without bf16 arithmetic
        grad, q, k, v, out = (x.contiguous() for x in (grad, q, k, v, out))
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, causal)


def _cuda_flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]


def _cuda_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    unused = torch.empty(0, dtype=torch.uint64, device=q.device)  # random state: there is no dropout
    lengths = (None, None, q.shape[2], k.shape[2])
    return aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse.contiguous(), *lengths, 0.0, causal, unused, unused
    )


def _naive_scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """[B, H, L, M] in at least fp32."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    k = k.to(dtype).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.to(dtype) @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores


def _naive_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    scores = _naive_scores(q, k, causal)
    v = v.to(scores.dtype).repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return (scores.softmax(-1) @ v).to(q.dtype), scores.logsumexp(-1)


def _naive_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weights = (_naive_scores(q, k, causal) - lse[..., None]).exp()
    dtype, groups = weights.dtype, q.shape[1] // k.shape[1]
    grad, out, scale = grad.to(dtype), out.to(dtype), 1 / math.sqrt(q.shape[-1])
    dweights = grad @ v.to(dtype).repeat_interleave(groups, dim=1).transpose(-1, -2)
    dscores = weights * (dweights - (grad * out).sum(-1, keepdim=True)) * scale
    dq = dscores @ k.to(dtype).repeat_interleave(groups, dim=1)
    dk = dscores.transpose(-1, -2) @ q.to(dtype)
    dv = weights.transpose(-1, -2) @ grad
    dk, dv = (x.unflatten(1, (k.shape[1], groups)).sum(2) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


NAIVE = Kernel(_naive_forward, _naive_backward)
CPU_FLASH = Kernel(_cpu_flash_forward, _cpu_flash_backward)
CUDA_FLASH = Kernel(_cuda_flash_forward, _cuda_flash_backward)
"""Written from the operators' signatures; not run yet, for want of a GPU."""


def choose(q: Tensor) -> Kernel:
    """The fastest kernel that takes such queries [..., D]."""
    if q.device.type == "cpu":
        return CPU_FLASH
    head_dim = q.shape[-1]  # torch's operator, called without SDPA around it, neither pads nor takes more
    if q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256:
        return CUDA_FLASH
    return NAIVE  # fp32 and fp64 on an accelerator: for verification


def forward_tiles(
    kernel: Kernel,
    q_BLHD: Tensor,
    k_BMKD: Tensor,
    v_BMKD: Tensor,
    tiles: tuple[Tile, ...],
    out_BLHD: Tensor,
    lse_BLH: Tensor,
) -> None:
    """Attends to one block of keys and merges into the running output and logsumexp, in place."""
    for tile in tiles:
        queries, keys = (tile.rows, tile.queries), (tile.rows, tile.keys)
        q, k, v = (x.transpose(1, 2) for x in (q_BLHD[queries], k_BMKD[keys], v_BMKD[keys]))
        out, lse = (x.transpose(1, 2) for x in kernel.forward(q, k, v, tile.causal))
        if tile.first:
            out_BLHD[queries] = out
            lse_BLH[queries] = lse
            continue
        before = lse_BLH[queries]
        # softmax over both: out = before + (new - before) · sigmoid(lse_new - lse_before). Rows not yet reached have
        # logsumexp -inf and weight 1. The tile's own logsumexp is finite: a query without keys is in no tile.
        out_BLHD[queries].lerp_(out.to(out_BLHD.dtype), (lse - before).sigmoid()[..., None].to(out_BLHD.dtype))
        lse_BLH[queries] = torch.logaddexp(before, lse)


def backward_tiles(
    kernel: Kernel,
    grad_BLHD: Tensor,
    q_BLHD: Tensor,
    k_BMKD: Tensor,
    v_BMKD: Tensor,
    out_BLHD: Tensor,
    lse_BLH: Tensor,
    tiles: tuple[Tile, ...],
    dq_BLHD: Tensor,
    dk_BMKD: Tensor,
    dv_BMKD: Tensor,
) -> None:
    """Adds the gradients of one block of keys to the accumulators, in place."""
    for tile in tiles:
        queries, keys = (tile.rows, tile.queries), (tile.rows, tile.keys)
        grad, q, out, lse = (x[queries].transpose(1, 2) for x in (grad_BLHD, q_BLHD, out_BLHD, lse_BLH))
        k, v = (x[keys].transpose(1, 2) for x in (k_BMKD, v_BMKD))
        dq, dk, dv = (x.transpose(1, 2) for x in kernel.backward(grad, q, k, v, out, lse, tile.causal))
        dq_BLHD[queries] += dq
        dk_BMKD[keys] += dk
        dv_BMKD[keys] += dv
