"""Completions to padded batches, and what belongs to their tokens there and back.

Shapes: B rows, S positions of the longest row; N completions, T tokens of the longest answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

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


class AnswerRows:
    """One completion a row, ``micro_batch`` rows a batch, and where the answers lie in them."""

    def __init__(self, completions: Sequence[Completion], micro_batch: int, dtype: torch.dtype = torch.float32) -> None:
        self.completions, self.dtype = completions, dtype
        self.parts = [slice(first, first + micro_batch) for first in range(0, len(completions), micro_batch)]
        self.longest = max(len(item.tokens) for item in completions)

    def batches(self, weights_N: Tensor, extras: Mapping[str, Sequence[Tensor]]) -> list[Batch]:
        """weights_N: of each token of a completion. extras: name -> rows as ``put`` makes them."""
        batches = []
        for number, part in enumerate(self.parts):
            items, weights = self.completions[part], weights_N[part].tolist()
            size = row_size(items)
            batch = Batch.of(
                [padded_row(item.prompt_tokens, item.tokens, size, weight) for item, weight in zip(items, weights)]
            )
            counted = {name: rows[number] for name, rows in extras.items()}
            batches.append(replace(batch, weights=self._weights(items, weights, size), extras=counted))
        return batches

    def _weights(self, items: Sequence[Completion], weights: Sequence[float], size: int) -> Tensor:
        rows = torch.zeros(len(items), size, dtype=self.dtype)
        for row, (item, weight) in enumerate(zip(items, weights)):
            answer = answer_of(item)
            rows[row, answer.start + item.unlearnt : answer.stop] = weight
        return rows

    def put(self, values_NT: Tensor) -> list[Tensor]:
        """[N, T] of answers' tokens -> [B, S] a batch, 0 elsewhere."""
        found = []
        for part in self.parts:
            items = self.completions[part]
            rows = torch.zeros(len(items), row_size(items), dtype=self.dtype)
            for row, item, values_T in zip(rows, items, values_NT[part]):
                row[answer_of(item)] = values_T[: len(item.tokens)].to(self.dtype)
            found.append(rows)
        return found

    def take(self, rows: Sequence[Tensor]) -> Tensor:
        """[B, S] a batch -> [N, T] of answers' tokens, 0 past their ends."""
        found = torch.zeros(len(self.completions), self.longest, dtype=torch.float64)
        for part, values_BS in zip(self.parts, rows):
            for values_T, item, row in zip(found[part], self.completions[part], values_BS.cpu()):
                values_T[: len(item.tokens)] = row[answer_of(item)]
        return found

    @property
    def sampled_logprobs(self) -> list[Tensor]:
        """Rows of what the sampler said."""
        values = torch.zeros(len(self.completions), self.longest, dtype=torch.float64)
        for row, item in zip(values, self.completions):
            row[: len(item.tokens)] = torch.tensor(item.logprobs, dtype=torch.float64)
        return self.put(values)


def answer_of(item: Completion) -> slice:
    """Positions of a row that predict the answer's tokens."""
    start = len(item.prompt_tokens) - 1
    return slice(start, start + len(item.tokens))
