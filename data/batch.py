"""A batch, before any sharding. Shapes: B rows, S positions."""

from collections.abc import Sequence
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
        stacked: dict[str, Any] = {
            item.name: torch.from_numpy(np.stack([getattr(sample, item.name) for sample in samples]))
            for item in fields(Sample)
        }
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
    index = np.arange(len(tokens) - 1)
    begin = np.maximum.accumulate(np.where(starts[:-1], index, 0))
    return Sample(
        tokens=tokens[:-1].astype(np.int64),
        labels=tokens[1:].astype(np.int64),
        weights=np.where(starts[1:], 0.0, weights[1:]).astype(np.float32),
        positions=index - begin,
        doc_ids=np.cumsum(starts[:-1]),
    )
