"""Floating-point operations of the model, and the rate to hold them against."""

import time

import torch

from farside.configs.schema import ModelConfig


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward and backward operations per token: 6 per matrix parameter, plus causal attention.

    A query sees (S+1)/2 keys on average, and each pair costs 2·2·D multiply-adds forward, three times that
    with the backward: 6·layers·heads·D·(S+1) a token. The embedding look-up is free, the head is not.
    """
    attention = config.hidden_size * config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    matrices = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    matrices += config.vocab_size * config.hidden_size
    scores = config.num_hidden_layers * config.num_attention_heads * config.head_dim * (seq_len + 1)
    return 6.0 * (matrices + scores)


def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 768, seconds: float = 0.15) -> float:
    """Operations a second of a square matrix product here and now: what MFU is relative to.

    Measured, so that it holds on any device; median of the repetitions that fit into ``seconds``.
    """
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[float] = []
    torch.mm(a, b)
    while sum(times) < seconds:
        synchronise()
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / sorted(times)[len(times) // 2]
