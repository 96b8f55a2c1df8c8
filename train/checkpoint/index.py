"""tensors.json: of which pieces in which files the whole tensors of a checkpoint consist, and how boxes are read.

``{"model": {"files": [name, ...], "tensors": {name: {"dtype": "F32", "shape": [...], "pieces": [[file, offset, shape],
...]}}}, "optimizer": ...}`` with files by number. The pieces of a tensor cover it exactly once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from farside.parallel.box import Box, Piece
from farside.train.checkpoint.files import DTYPE_NAMES, DTYPES, corrupt, natural

INDEX = "tensors.json"
MOST_CELLS = 1 << 24
"""Of the grid that the edges of a tensor's pieces make. Ranks cut grids, which have as many cells as pieces."""


@dataclass(frozen=True)
class Whole:
    """A whole tensor on disk. pieces: (file name, box) of each."""

    dtype: torch.dtype
    shape: torch.Size
    pieces: tuple[tuple[str, Box], ...]


def describe(pieces: Mapping[str, Piece]) -> dict[str, Any]:
    """What a rank tells of the pieces in its file: name -> [dtype, shape of the whole, offset, shape]."""
    return {
        name: [
            DTYPE_NAMES[piece.values.dtype],
            list(piece.whole),
            list(piece.box.offset),
            list(piece.box.shape),
        ]
        for name, piece in pieces.items()
    }


def merge(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The index of one group of tensors from what ranks told. files: file name -> its description."""
    names = sorted(files)
    tensors: dict[str, dict[str, Any]] = {}
    for number, file in enumerate(names):
        for name, (dtype, whole, offset, shape) in files[file].items():
            entry = tensors.setdefault(name, {"dtype": dtype, "shape": whole, "pieces": []})
            assert (entry["dtype"], entry["shape"]) == (dtype, whole), f"ranks disagree on {name}"
            entry["pieces"].append([number, offset, shape])
    return {"files": names, "tensors": dict(sorted(tensors.items()))}


def parse(described: Any) -> dict[str, Whole]:
    """One group of tensors.json. Raises ValueError, TypeError or KeyError for anything but a sound one."""
    files = [str(name) for name in described["files"]]
    found = {}
    for name, entry in dict(described["tensors"]).items():
        shape = torch.Size(natural(count) for count in entry["shape"])
        pieces = tuple(
            (files[natural(number)], Box(tuple(map(natural, offset)), tuple(map(natural, size))))
            for number, offset, size in entry["pieces"]
        )
        if not _covers([box for _, box in pieces], shape):
            raise ValueError(f"the pieces of {name!r} do not make a whole")
        found[name] = Whole(DTYPES[entry["dtype"]], shape, pieces)
    return found


def _covers(boxes: list[Box], shape: torch.Size) -> bool:
    """Whether the boxes hold every element of the shape exactly once."""
    if any(not len(box.offset) == len(box.shape) == len(shape) for box in boxes):
        return False
    if sum(box.numel for box in boxes) != math.prod(shape):
        return False
    if len(boxes) == 1:
        return boxes[0] == Box.whole(shape)
    edges = [
        sorted({0, size, *(edge for box in boxes for edge in (box.offset[dim], box.offset[dim] + box.shape[dim]))})
        for dim, size in enumerate(shape)
    ]
    if any(dim[-1] > n for dim, n in zip(edges, shape)) or math.prod(map(len, edges)) > MOST_CELLS:
        return False
    cells = np.zeros([len(dim) - 1 for dim in edges], dtype=np.int32)
    numbers = [{edge: number for number, edge in enumerate(dim)} for dim in edges]
    for box in boxes:
        cells[tuple(slice(at[o], at[o + n]) for at, o, n in zip(numbers, box.offset, box.shape))] += 1
    return bool((cells == 1).all())


class TensorReader:
    """Implements ``Stored`` over the shards of a checkpoint: only the bytes of the asked boxes are read."""

    def __init__(self, folder: Path, group: str, wholes: Mapping[str, Whole]) -> None:
        self.folder, self.group, self.wholes = folder, group, wholes
        self.shapes = {name: whole.shape for name, whole in wholes.items()}
        self.opened: dict[str, Any] = {}

    def read(self, name: str, box: Box) -> Tensor:
        """Raises CorruptCheckpoint if the tensor or the box is not there."""
        whole = self.wholes.get(name)
        if whole is None or any(o + n > size for o, n, size in zip(box.offset, box.shape, whole.shape)):
            raise corrupt(self.folder / INDEX, f"no {name} of at least {box} in {self.group}")
        values = torch.empty(box.shape, dtype=whole.dtype)
        for file, held in whole.pieces:
            common = held.common(box)
            if common.numel:
                values[common.within(box)] = self._slice(file, name, common.within(held))
        return values

    def _slice(self, file: str, name: str, where: tuple[slice, ...]) -> Tensor:
        try:
            if file not in self.opened:
                self.opened[file] = safe_open(self.folder / file, framework="pt")
            opened = self.opened[file]
            return opened.get_slice(name)[where] if where else opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise corrupt(self.folder / file, f"cannot be read ({error})") from error

    def tensors(self) -> dict[str, Tensor]:
        """Everything, whole."""
        return {name: self.read(name, Box.whole(shape)) for name, shape in self.shapes.items()}


def check_header(path: Path, expected: Mapping[str, tuple[str, list[int]]]) -> None:
    """Raises CorruptCheckpoint unless the file holds exactly these: name -> (dtype, shape)."""
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
            found = {name: (piece.get_dtype(), piece.get_shape()) for name, piece in slices.items()}
    except (SafetensorError, OSError) as error:
        raise corrupt(path, f"corrupt ({error})") from error
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise corrupt(path, f"corrupt ({name} is not what {INDEX} says)")
