"""Floating-point operations of the model, and the rate to hold them against: model FLOPs utilisation (MFU).

Three conventions differ in which pairs of tokens attention is credited with; all count 6 operations a matrix
parameter and token (the look-up is free, the head is not) and 12 D a head and pair, forward and backward:
causal: a query sees the (S+1)/2 keys that it may see on average, were a row one document;
PaLM (arXiv 2204.02311, appendix B): all S keys, though half are masked: comparable with published numbers;
document: the keys of its own document up to itself: what exact attention over packed documents has to do.
"""

import time

import torch

from farside.configs.schema import ModelConfig

PEAK_TFLOPS = {
    "A100": 312.0,  # NVIDIA A100 data sheet
    "A800": 312.0,  # as A100
    "H100 PCIe": 756.5,  # NVIDIA H100 data sheet; its numbers are with sparsity: halved here and below
    "H100 NVL": 835.5,  # NVIDIA H100 NVL data sheet
    "H100": 989.5,  # NVIDIA H100 data sheet, SXM
    "H800": 989.5,  # as H100 SXM
    "GH200": 989.5,  # NVIDIA GH200 data sheet
    "H200": 989.5,  # NVIDIA H200 data sheet
    "H20": 148.0,  # NVIDIA H20 product brief
    "B200": 2250.0,  # NVIDIA HGX B200 data sheet, a GPU
    "L40S": 362.05,  # NVIDIA L40S data sheet
    "L40": 181.05,  # NVIDIA L40 data sheet
    "L4": 121.0,  # NVIDIA L4 data sheet
    "A10G": 70.0,  # AWS EC2 G5 description
    "MI300X": 1307.4,  # AMD Instinct MI300X data sheet
    "MI325X": 1307.4,  # AMD Instinct MI325X data sheet
    "MI250X": 191.5,  # AMD Instinct MI250X data sheet, one of two dies: that is what torch calls a device
}
"""10^12 dense bf16 operations a second by a part of the device's name."""


def _matrices(config: ModelConfig) -> int:
    attention = config.hidden_size * config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * layer + config.vocab_size * config.hidden_size


def flops(config: ModelConfig, tokens: float, pairs: float) -> float:
    """Forward and backward operations of so many tokens, and pairs of a query and a key it is credited with."""
    a_pair = 12.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 6.0 * _matrices(config) * tokens + a_pair * pairs


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """In the causal convention."""
    return flops(config, 1.0, (seq_len + 1) / 2)


def utilisation(config: ModelConfig, seq_len: int, tokens: float, pairs: float, rate: float) -> dict[str, float]:
    """MFU in the three conventions.

    tokens: of the step, in rows of ``seq_len``; pairs: Σ l(l+1)/2 over its documents of l tokens; rate: operations
    that the devices could have done in the step's time.
    """
    return {
        "mfu": flops_per_token(config, seq_len) * tokens / rate,
        "mfu_palm": flops(config, tokens, tokens * seq_len) / rate,
        "mfu_document": flops(config, tokens, pairs) / rate,
    }


def known_peak(name: str) -> float | None:
    """Dense bf16 operations a second of a GPU by the name torch gives it; None if it is not in the table."""
    found = [part for part in PEAK_TFLOPS if part.lower() in name.lower().replace("-", " ").replace("_", " ")]
    return PEAK_TFLOPS[max(found, key=len)] * 1e12 if found else None


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """What MFU is relative to: the table's value for bf16 on a known GPU, else a rate measured here and now."""
    known = known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return known if known and dtype is torch.bfloat16 else measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 768, seconds: float = 0.15) -> float:
    """Operations a second of a square matrix product here and now.

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
