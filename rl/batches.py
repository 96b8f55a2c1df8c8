"""Completions to padded batches. Shapes: B rows, S positions of the longest row."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from farside.data.batch import Batch, Sample
from farside.rl.types import Completion


def padded_row(prompt: Sequence[int], response: Sequence[int], size: int, weight: float) -> Sample:
    """A row of ``size`` positions: each response token carries ``weight``; padding follows, with none."""
    tokens = np.zeros(size + 1, dtype=np.int64)
    weights = np.zeros(size + 1, dtype=np.float32)
    end = len(prompt) + len(response)
    tokens[:end] = [*prompt, *response]
    weights[len(prompt) : end] = weight
    # padding stays in the row's one document: it comes after every real token, which causality cannot see
    return Sample(tokens[:-1], tokens[1:], weights[1:], np.arange(size), np.zeros(size, dtype=np.int64))


def row_size(completions: Sequence[Completion]) -> int:
    return max(len(item.prompt_tokens) + len(item.tokens) for item in completions) - 1


def policy_batches(
    completions: Sequence[Completion], advantages: Tensor, valid: Tensor, micro_batch: int
) -> list[Batch]:
    """GRPO's batches: a token weighs 1/|o_i|, a sample whose verdict was an error nothing.

    advantages, valid: [N]. Extras: advantages and old_logprobs, [B, S].
    """
    batches = []
    for first in range(0, len(completions), micro_batch):
        part = completions[first : first + micro_batch]
        size = row_size(part)
        rows = [
            padded_row(item.prompt_tokens, item.tokens, size, float(valid[first + number]) / len(item.tokens))
            for number, item in enumerate(part)
        ]
        batch = Batch.of(rows)
        old = torch.zeros_like(batch.weights)
        for number, item in enumerate(part):
            start = len(item.prompt_tokens) - 1
            old[number, start : start + len(item.tokens)] = torch.tensor(item.logprobs)
        spread = advantages[first : first + len(part), None].to(old.dtype).expand_as(old)
        extras = {"old_logprobs": old, "advantages": spread.contiguous()}
        batches.append(Batch(**{**vars(batch), "extras": extras}))
    return batches
