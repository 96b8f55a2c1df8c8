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

MASKED_PAIRS = 8192
"""Per tile: with fewer (query, key) pairs in the whole mask, one masked call is faster than a call per document."""


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
        plan = docs.planned("single rank", lambda: self._plan(docs))
        if isinstance(plan, tiles.Steps):
            kernel = kernels.choose(q_BLHD)
            return RingAttention.apply(q_BLHD, k_BLKD, v_BLKD, plan, None, kernel)
        mask = None if plan is None else plan.to(q_BLHD.device)
        q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BLKD, v_BLKD))  # [B, L, H, D] -> [B, H, L, D]
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=gqa).transpose(1, 2)

    def _plan(self, docs: Documents) -> tiles.Steps | Tensor | None:
        """None: plain causal. Tiles: one call per document, else a mask [B, 1, S, S] where documents are very short."""
        if docs.single:
            return None
        steps = tiles.plan(docs, docs.places_BS, [docs.places_BS])
        few = docs.places_BS.size * docs.places_BS.shape[1] < MASKED_PAIRS * len(steps.tiles[0])
        # torch's kernels do not agree on a row that sees nothing: padding always takes the tiles
        return docs.allowed_BSS[:, None] if few and (docs.pairs_BS > 0).all() else steps

    def work(self, docs: Documents) -> np.ndarray:
        return docs.pairs_BS.sum(keepdims=True).reshape(1)

    def bytes_sent(
        self, rows: int, size: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> BytesSent:
        return {}, {}
