"""Keys and values of growing sequences, one a slot.

Shapes: B slots, N rows in use (the first ones), P prompts of S tokens, K key/value heads, T capacity in tokens, D head
dim, H heads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from farside.configs.schema import ModelConfig


class Prefixes:
    """Keys and values of prompts padded on the right, layer by layer as they are computed."""

    def __init__(self, prompts: int, length: int) -> None:
        self.prompts, self.length = prompts, length
        self.keys: list[Tensor] = []  # a layer's: [P, K, S, D]
        self.values: list[Tensor] = []

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """Causal: the padding lies after every real token."""
        q, k, v = (
            x.unflatten(0, (self.prompts, self.length)).transpose(1, 2).contiguous() for x in (q_NHD, k_NKD, v_NKD)
        )
        self.keys.append(k)
        self.values.append(v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).reshape(len(q_NHD), -1)

    def only(self, prompt: int) -> "Prefixes":
        """One of them."""
        found = Prefixes(1, self.length)
        found.keys, found.values = ([x[prompt][None].clone() for x in kind] for kind in (self.keys, self.values))
        return found


class KVCache:
    """``lengths``: tokens stored in each slot, kept by the host, which never has to ask the device for them."""

    def __init__(self, config: ModelConfig, slots: int, capacity: int, like: Tensor) -> None:
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, capacity, config.head_dim)
        # zeros, not whatever there was: a masked NaN would still make NaN of a sum
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)  # [layers, B, K, T, D]
        self.values = torch.zeros_like(self.keys)
        self.lengths = np.zeros(slots, dtype=np.int64)
        heads = slots * config.num_key_value_heads
        self.begins_BK = (torch.arange(heads, device=like.device) * capacity).view(slots, -1)
        self.columns_T = torch.arange(capacity, device=like.device)

    def put(self, first: int, prefixes: Prefixes, which: Sequence[int], lengths: Sequence[int]) -> None:
        """Prompts ``which`` into the slots from ``first`` on; one may go to several."""
        slots, chosen = slice(first, first + len(which)), torch.tensor(which, device=self.keys.device)
        for layer, (keys, values) in enumerate(zip(prefixes.keys, prefixes.values)):
            self.keys[layer, slots, :, : prefixes.length] = keys[chosen]
            self.values[layer, slots, :, : prefixes.length] = values[chosen]
        self.lengths[slots] = lengths

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Slots ``sources`` to ``targets``."""
        filled = int(self.lengths[list(sources)].max(initial=0))
        taken, given = (torch.tensor(slots, device=self.keys.device) for slots in (sources, targets))
        for stored in (self.keys, self.values):
            stored[:, given, :, :filled] = stored[:, taken, :, :filled]
        self.lengths[list(targets)] = self.lengths[list(sources)]

    def append(self, rows: int) -> "Step":
        """One token more in each of the first ``rows`` slots."""
        lengths_N = torch.tensor(self.lengths[:rows], device=self.keys.device)
        self.lengths[:rows] += 1
        return Step(self, lengths_N, int(self.lengths[:rows].max()))


class Step:
    """One token a row; ``positions_N`` are theirs."""

    def __init__(self, cache: KVCache, positions_N: Tensor, filled: int) -> None:
        self.cache, self.positions_N, self.filled = cache, positions_N, filled
        self.places = (cache.begins_BK[: len(positions_N)] + positions_N[:, None]).flatten()
        seen_NT = cache.columns_T[:filled] <= positions_N[:, None]
        zero = torch.zeros((), dtype=cache.keys.dtype, device=cache.keys.device)
        self.mask_N11T = torch.where(seen_NT, zero, -torch.inf)[:, None, None]

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """Stores the token's key and value and attends to all of its sequence."""
        dim = q_NHD.shape[-1]
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.view(-1, dim).index_copy_(0, self.places, k_NKD.reshape(-1, dim))
        values.view(-1, dim).index_copy_(0, self.places, v_NKD.reshape(-1, dim))
        rows, groups = k_NKD.shape[:2]
        k_NKTD, v_NKTD = keys[:rows, :, : self.filled], values[:rows, :, : self.filled]
        # the heads that share keys stand where a prompt's positions would: no copy of the keys for each
        out = F.scaled_dot_product_attention(
            q_NHD.reshape(rows, groups, -1, dim), k_NKTD, v_NKTD, attn_mask=self.mask_N11T
        )
        return out.reshape(rows, -1)
