"""Learning rate over one stage: a number between 0 and 1, to be multiplied by the stage's peak."""

import math

from farside.configs.schema import ScheduleConfig, ScheduleKind


def lr_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor at ``step`` (from 0) of ``steps``.

    Both shapes rise linearly over warmup_steps (at most half the stage). cosine then falls along half a cosine
    (Loshchilov and Hutter, arXiv 1608.03983); wsd stays at 1 and falls linearly over the last decay_share
    (MiniCPM, arXiv 2404.06395). Both end at min_ratio on the last step.
    """
    warmup = min(config.warmup_steps, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    if config.kind is ScheduleKind.cosine:
        done = (step - warmup) / max(1, steps - 1 - warmup)
        return config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))
    decay = max(1, round(config.decay_share * steps))
    left = min(1.0, (steps - 1 - step) / decay)
    return config.min_ratio + (1 - config.min_ratio) * left
