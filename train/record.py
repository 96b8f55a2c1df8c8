"""What a step leaves in metrics.jsonl."""

import resource
from typing import Any

import torch

from farside.configs.schema import ModelConfig
from farside.configs.stages import Stage
from farside.train.model.flops import utilisation


def describe_speed(stage: Stage, model: ModelConfig, pairs: float, possible: float, seconds: float) -> dict[str, Any]:
    """pairs: of visible positions in the step's batch; possible: operations that the hardware could do in a second."""
    tokens = stage.global_batch_size * stage.seq_len
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        **utilisation(model, stage.seq_len, tokens, pairs, possible * seconds),
        "stage": stage.name,
        "seq_len": stage.seq_len,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Of this process: allocated on the accelerator, or resident on the CPU (Linux counts KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
