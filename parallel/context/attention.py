"""Exact causal attention within documents, on one context-parallel rank.

``ContextParallel`` is the seam where ring, all-gather and Ulysses attention will stand: layout and kernel in
one object, so they cannot disagree. Degree 1 is ``SingleRank``: the identity layout over torch's kernel.
``reference_attention`` is the slow twin.

Shapes: B batch, S sequence, L = S/cp local sequence, H heads, K key/value heads, D head dim.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Documents:
    """Which tokens may see each other: those of one document, causally.

    ids_BS: document number per token; equal numbers of one row are contiguous.
    single: every row is one document, so that the plain causal kernel is exact.
    """

    ids_BS: Tensor
    single: bool

    @classmethod
    def of(cls, ids_BS: Tensor) -> "Documents":
        """Reads the ids: call it before they move to an accelerator, where this would wait for the device."""
        return cls(ids_BS, bool((ids_BS == ids_BS[:, :1]).all()))

    @cached_property
    def allowed_BSS(self) -> Tensor:
        """[B, S (query), S (key)] bool: causal and in one document."""
        size = self.ids_BS.shape[1]
        causal_SS = torch.ones(size, size, dtype=torch.bool, device=self.ids_BS.device).tril()
        return (self.ids_BS[:, :, None] == self.ids_BS[:, None, :]) & causal_SS


class ContextParallel(Protocol):
    def shard(self, x: Tensor, dim: int) -> Tensor:
        """The local L of S positions along ``dim``."""
        ...

    def unshard(self, x: Tensor, dim: int) -> Tensor:
        """Inverse of shard; collective."""
        ...

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        """Exact causal attention within documents over the whole S: [B, L, H, D]."""
        ...


class SingleRank:
    """Context-parallel degree 1."""

    def shard(self, x: Tensor, dim: int) -> Tensor:
        return x

    def unshard(self, x: Tensor, dim: int) -> Tensor:
        return x

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        mask = None if docs.single else docs.allowed_BSS[:, None]
        q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BLKD, v_BLKD))  # [B, L, H, D] -> [B, H, L, D]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)


def reference_attention(q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, docs: Documents) -> Tensor:
    """Softmax over explicit scores, in the inputs' precision but at least fp32: the truth for tests. [B, S, H, D]."""
    dtype = torch.promote_types(q_BSHD.dtype, torch.float32)
    groups = q_BSHD.shape[2] // k_BSKD.shape[2]
    k, v = (x.to(dtype).repeat_interleave(groups, dim=2) for x in (k_BSKD, v_BSKD))
    scores_BHSS = torch.einsum("bqhd,bkhd->bhqk", q_BSHD.to(dtype), k) / math.sqrt(q_BSHD.shape[-1])
    scores_BHSS = scores_BHSS.masked_fill(~docs.allowed_BSS[:, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores_BHSS.softmax(-1), v).to(q_BSHD.dtype)
