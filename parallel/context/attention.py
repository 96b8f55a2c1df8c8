"""Exact causal attention within documents, on one context-parallel rank: the seam that models and engines see.

A context holds layout, kernel and groups in one object, so they cannot disagree: ``SingleRank`` here, ``Ring`` in
ring.py, ``AllGather`` in allgather.py, ``Ulysses`` and ``Hybrid`` in hybrid.py; build.py chooses.

Shapes: N ranks, B batch, S global sequence, L = S/N local slots, H heads, K key/value heads, D head dim.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from farside.parallel.context import kernels, tiles
from farside.parallel.context.documents import Documents
from farside.parallel.context.ring import RingAttention
from farside.parallel.context.sharded import BytesSent


class ContextParallel(Protocol):
    """docs are those of the whole micro-batch, unsharded and equal on all ranks of the context."""

    @property
    def size(self) -> int:
        """Number of ranks N."""
        ...

    def shard(self, x_BS: Tensor, docs: Documents) -> Tensor:
        """This rank's slots of a global tensor [B, S, ...]: [B, L, ...]. Labels, positions and extras go with the
        tokens; whatever looks at neighbours (label shift, document starts) is computed before."""
        ...

    def unshard(self, x_BL: Tensor, docs: Documents) -> Tensor:
        """Inverse of shard, on every rank. Collective; its backward is shard, for ranks that all go on alike."""
        ...

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        """Exact causal attention within documents over the whole S, zeros for padding: [B, L, H, D]. Collective."""
        ...

    def work(self, docs: Documents) -> np.ndarray:
        """Attention work of every rank in (query, key) pairs over all heads: [N]. Its sum does not depend on N."""
        ...

    def bytes_sent(
        self, rows: int, size: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BytesSent:
        """Formula for one attend of a [rows, size] micro-batch; ``comm.count_bytes`` measures the same."""
        ...


class SingleRank:
    """Context-parallel degree 1."""

    size = 1

    def shard(self, x_BS: Tensor, docs: Documents) -> Tensor:
        return x_BS

    def unshard(self, x_BL: Tensor, docs: Documents) -> Tensor:
        return x_BL

    def attend(self, q_BLHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, docs: Documents) -> Tensor:
        if docs.single:
            q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BLKD, v_BLKD))  # [B, L, H, D] -> [B, H, L, D]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
            return out.transpose(1, 2)
        steps = docs.planned("single rank", lambda: tiles.plan(docs, docs.places_BS, [docs.places_BS]))
        kernel = kernels.choose(q_BLHD.device, q_BLHD.dtype)
        return RingAttention.apply(q_BLHD, k_BLKD, v_BLKD, steps, None, kernel)

    def work(self, docs: Documents) -> np.ndarray:
        return docs.pairs_BS.sum(keepdims=True).reshape(1)

    def bytes_sent(
        self, rows: int, size: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BytesSent:
        return {}, {}
