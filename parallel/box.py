"""Boxes of whole tensors: what one rank holds, writes and reads. No communication."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """The elements [offset, offset + shape) of a whole tensor, a dimension at a time."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: torch.Size) -> "Box":
        return cls((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def common(self, other: "Box") -> "Box":
        """What both hold; of no elements if nothing."""
        first = tuple(map(max, self.offset, other.offset))
        last = (min(a + m, b + n) for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape))
        return Box(first, tuple(max(0, end - start) for start, end in zip(first, last)))

    def within(self, outer: "Box") -> tuple[slice, ...]:
        """Where this box lies in a tensor that holds ``outer``."""
        starts = (mine - theirs for mine, theirs in zip(self.offset, outer.offset))
        return tuple(slice(start, start + size) for start, size in zip(starts, self.shape))


@dataclass(frozen=True)
class Piece:
    """A box of a tensor of shape ``whole`` and its values."""

    whole: torch.Size
    box: Box
    values: Tensor


class Stored(Protocol):
    """Whole tensors kept somewhere, of which a rank reads the boxes that it needs."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]: ...

    def read(self, name: str, box: Box) -> Tensor:
        """The values of that box."""
        ...
