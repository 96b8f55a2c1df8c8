"""A stand-in for an engine: a few small tensors cut by rows over the ranks, as FSDP2 cuts them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from farside.parallel.box import Box, Piece, Stored
from farside.train.checkpoint import format as checkpoint_format
from farside.train.engine.base import EngineState

SHAPES = {"a.weight": (7, 3), "b.weight": (4, 2), "norm.weight": (5,)}

STATE = {"identity": {"model": "test"}, "parent": None, "updates": 5, "text": "远"}


def whole(name: str, value: float) -> Tensor:
    """Every element another, a function of name and value."""
    shape = SHAPES[name.removeprefix("m.")]
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) + 1000 * value + len(name)).view(shape)


class RowEngine:
    """Rank ``rank`` of ``size``; ``value`` decides all tensors. repeat: rows are that many times as wide."""

    def __init__(self, value: float, rank: int = 0, size: int = 1, repeat: int = 1) -> None:
        self.rank, self.size, self.repeat = rank, size, repeat
        self.set(value)

    def set(self, value: float) -> None:
        self.tensors = {name: self._piece(name, value) for name in [*SHAPES, *(f"m.{name}" for name in SHAPES)]}

    def _piece(self, name: str, value: float) -> Piece:
        tensor = whole(name, value).repeat_interleave(self.repeat, -1) if self.repeat > 1 else whole(name, value)
        rows = -(-tensor.shape[0] // self.size)
        start = min(self.rank * rows, tensor.shape[0])
        count = min(rows, tensor.shape[0] - start)
        box = Box((start,) + (0,) * (tensor.ndim - 1), (count, *tensor.shape[1:]))
        return Piece(tensor.shape, box, tensor[start : start + count].clone())

    def add_(self, amount: float) -> None:
        """What a training step does to the live tensors."""
        for piece in self.tensors.values():
            piece.values.add_(amount)

    def check_replicas(self) -> None:
        """Each rank holds its own."""

    def state_dict(self) -> EngineState:
        held = {name: piece for name, piece in self.tensors.items() if piece.box.numel}
        model = {name: piece for name, piece in held.items() if not name.startswith("m.")}
        return EngineState(model, {name: piece for name, piece in held.items() if name.startswith("m.")}, 5)

    def load_state_dict(self, model: Stored, optimizer: Stored, updates: int) -> None:
        for name, piece in self.tensors.items():
            stored = optimizer if name.startswith("m.") else model
            if piece.box.numel:
                self.tensors[name] = replace(piece, values=stored.read(name, piece.box))

    def holds(self, value: float) -> bool:
        """Whether this rank's tensors are those of ``value``, bit for bit."""
        return all(torch.equal(piece.values, self._piece(name, value).values) for name, piece in self.tensors.items())


def write_as_ranks(path: Path, step: int, ranks: int, value: float = 1.0) -> Path:
    """The checkpoint that ``ranks`` ranks would write, written by one process."""
    folder, told = checkpoint_format.begin(path), {}
    for rank in range(ranks):
        state = RowEngine(value, rank, ranks).state_dict()
        groups = {"model": state.model, "optimizer": state.optimizer}
        told.update(checkpoint_format.write_pieces(folder, groups, rank, ranks))
    checkpoint_format.publish(path, step, told, STATE)
    return path
