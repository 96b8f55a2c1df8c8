"""The slow twin of every kind: softmax over explicit scores, on one rank.

Shapes: B batch, S global sequence, H heads, K key/value heads, D head dim.
"""

import math

import torch
from torch import Tensor

from farside.parallel.context.documents import Documents


def reference_attention(q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, docs: Documents) -> Tensor:
    """Attention in the inputs' precision but at least fp32: the truth for tests. Zeros for padding. [B, S, H, D]."""
    dtype = torch.promote_types(q_BSHD.dtype, torch.float32)
    groups = q_BSHD.shape[2] // k_BSKD.shape[2]
    k, v = (x.to(dtype).repeat_interleave(groups, dim=2) for x in (k_BSKD, v_BSKD))
    scores_BHSS = torch.einsum("bqhd,bkhd->bhqk", q_BSHD.to(dtype), k) / math.sqrt(q_BSHD.shape[-1])
    allowed_B1SS = docs.allowed_BSS[:, None]
    # lowest rather than -inf: a row that sees nothing must give zeros, not 0/0, also in its gradient
    scores_BHSS = scores_BHSS.masked_fill(~allowed_B1SS, torch.finfo(dtype).min)
    weights_BHSS = scores_BHSS.softmax(-1).masked_fill(~allowed_B1SS, 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights_BHSS, v).to(q_BSHD.dtype)
