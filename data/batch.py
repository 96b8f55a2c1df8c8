"""A batch, before any sharding. Shapes: B rows, S positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Sample:
    """One row of S positions as arrays: position t predicts ``labels[t]`` with loss weight ``weights[t]``."""

    tokens: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    """Restart at 0 in every document."""
    doc_ids: np.ndarray
    """Tokens attend within equal ids only."""


@dataclass(frozen=True)
class Batch:
    """Rows as tensors [B, S]; extras (advantages, old_logprobs ...) have the same shape and shard with them."""

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    doc_ids: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Batch":
        """Stacks rows of equal length."""
        return cls.gathered(len(samples), lambda row: samples[row])

    @classmethod
    def gathered(cls, rows: int, sample: Callable[[int], Sample]) -> "Batch":
        """Stacks ``sample(0) .. sample(rows - 1)``, of equal length. Each is copied before the next is made, whose
        arrays then take its memory: that halves the time, which is mostly the kernel's for fresh pages."""
        row = sample(0)
        stacked: dict[str, Any] = {}
        for item in fields(Sample):
            value = getattr(row, item.name)
            stacked[item.name] = torch.from_numpy(np.empty((rows, *value.shape), dtype=value.dtype))
        arrays = {name: tensor.numpy() for name, tensor in stacked.items()}
        for number in range(rows):
            row = sample(number) if number else row
            for name, array in arrays.items():
                array[number] = getattr(row, name)
        return cls(**stacked)

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {
            item.name: getattr(self, item.name).to(device, non_blocking=True) for item in fields(Sample)
        }
        return Batch(**moved, extras={name: value.to(device) for name, value in self.extras.items()})

    def padded_to_multiple(self, of: int) -> "Batch":
        """Rows lengthened at their end by positions that see nothing and count nothing (document -1)."""
        rows, size = self.tokens.shape
        return self.padded(rows, size + -size % of)

    def padded(self, rows: int, size: int) -> "Batch":
        """[rows, size], filled up with positions that see nothing and count nothing (document -1)."""
        room = (0, size - self.tokens.shape[1], 0, rows - self.tokens.shape[0])
        if not any(room):
            return self
        pad = lambda x, value=0: F.pad(x, room, value=value)  # noqa: E731
        return Batch(
            pad(self.tokens),
            pad(self.labels),
            pad(self.weights),
            pad(self.positions),
            pad(self.doc_ids, -1),
            {name: pad(value) for name, value in self.extras.items()},
        )

    @property
    def weight(self) -> float:
        """Σ weight over all tokens, in float64."""
        return float(self.weights.double().sum())

    @property
    def visible_pairs(self) -> float:
        """Pairs of a query and a key it sees: Σ l(l+1)/2 over documents of l tokens."""
        return float((self.positions + 1).sum())


def document_sample(tokens: np.ndarray, weights: np.ndarray, starts: np.ndarray) -> Sample:
    """A row from S+1 tokens of consecutive documents.

    tokens [S+1]; weights [S+1]: of predicting that token; starts [S+1] bool: the token begins a document. The
    first token of a document is never a label: nothing in its document precedes it. The last token is label only.
    """
    assert starts[0]
    wide = tokens.astype(np.int64)
    begins = np.flatnonzero(starts[:-1])
    ends = np.full(len(begins), len(tokens) - 1)
    ends[:-1] = begins[1:]
    lengths = ends - begins
    counted = weights[1:].astype(np.float32)
    counted[starts[1:]] = 0.0
    return Sample(
        tokens=wide[:-1],
        labels=wide[1:],
        weights=counted,
        positions=np.arange(len(tokens) - 1) - np.repeat(begins, lengths),
        doc_ids=np.repeat(np.arange(1, len(begins) + 1), lengths),
    )
