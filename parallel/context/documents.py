"""Which tokens may see each other: those of one document, causally.

Shapes: B batch, S global sequence.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from farside.parallel import types

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one micro-batch, unsharded: every rank holds the same.

    ids_BS: document number per token; equal numbers of one row are contiguous. A negative number marks padding,
        which sees nothing, is seen by nothing, and for which attention gives exact zeros.
    single: every row is one document, so that the plain causal kernel is exact.
    """

    ids_BS: Tensor
    single: bool
    _plans: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, ids_BS: Tensor) -> "Documents":
        """Reads the ids: call it before they move to an accelerator, where this would wait for the device."""
        return cls(ids_BS, bool(((ids_BS == ids_BS[:, :1]) & (ids_BS >= 0)).all()))

    def planned(self, key: Hashable, make: Callable[[], T]) -> T:
        """What a context makes of these documents, made once: every layer and recomputation needs it again."""
        if key not in self._plans:
            with types.unchecked():
                self._plans[key] = make()
        return self._plans[key]

    @property
    def places_BS(self) -> np.ndarray:
        """Every token's position in its row."""
        return np.broadcast_to(np.arange(self.ids_BS.shape[1]), tuple(self.ids_BS.shape))

    @cached_property
    def starts_BS(self) -> np.ndarray:
        """Position where the token's document begins: it sees [start, its own position]. Padding: position + 1."""
        ids_BS = self.ids_BS.cpu().numpy()
        if self.single:
            return np.zeros(ids_BS.shape, dtype=np.int64)
        begins_BS = np.ones(ids_BS.shape, dtype=bool)
        begins_BS[:, 1:] = ids_BS[:, 1:] != ids_BS[:, :-1]
        starts_BS = np.maximum.accumulate(np.where(begins_BS, self.places_BS, 0), axis=1)
        return np.where(ids_BS < 0, self.places_BS + 1, starts_BS)

    @property
    def pairs_BS(self) -> np.ndarray:
        """Keys that every token sees, itself included: the attention work of its query."""
        return self.places_BS + 1 - self.starts_BS

    @property
    def allowed_BSS(self) -> Tensor:
        """[B, S (query), S (key)] bool: causal and in one document. Quadratic: for the reference only."""
        size = self.ids_BS.shape[1]
        place_S = torch.arange(size, device=self.ids_BS.device)
        starts_BS = torch.from_numpy(self.starts_BS).to(self.ids_BS.device)
        return (place_S <= place_S[:, None]) & (place_S >= starts_BS[:, :, None])
