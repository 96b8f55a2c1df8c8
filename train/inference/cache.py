"""Keys and values of a batch of growing sequences.

Shapes: B rows, K key/value heads, T capacity in tokens, D head dim, H heads.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from farside.configs.schema import ModelConfig


class KVCache:
    """Rows may differ in length; ``lengths_B`` counts the tokens already stored in each.

    Its two ``attend`` functions plug into ``Transformer.hidden``.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)  # [layers, B, K, T, D]
        self.values = torch.zeros_like(self.keys)
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=like.device)

    def prefill(self, layer: int, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        """Stores prompts padded on the right and attends causally: the padding lies after every real token."""
        q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSKD, v_BSKD))
        self.keys[layer, :, :, : k.shape[2]] = k
        self.values[layer, :, :, : v.shape[2]] = v
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2)

    def decode(self, layer: int, q_B1HD: Tensor, k_B1KD: Tensor, v_B1KD: Tensor) -> Tensor:
        """Appends one token a row and attends to all of it. The caller advances ``lengths_B`` after the last layer."""
        rows = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
        self.keys[layer, rows, :, self.lengths_B] = k_B1KD[:, 0]
        self.values[layer, rows, :, self.lengths_B] = v_B1KD[:, 0]
        filled = int(self.lengths_B.max()) + 1
        k, v = self.keys[layer, :, :, :filled], self.values[layer, :, :, :filled]
        seen_BT = torch.arange(filled, device=k.device) <= self.lengths_B[:, None]
        out = F.scaled_dot_product_attention(
            q_B1HD.transpose(1, 2),
            k,
            v,
            attn_mask=seen_BT[:, None, None],
            enable_gqa=q_B1HD.shape[2] != k.shape[1],
        )
        return out.transpose(1, 2)

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows, in that order; a row may be repeated."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths_B = self.lengths_B[rows]
