"""The files of a checkpoint: safetensors written in one pass, JSON read with suspicion, everything synced and hashed.

safetensors' own writer would hold a second copy of the file in memory, and a third pass would be needed for the hash.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farside.configs.errors import UserError
from farside.parallel.box import Piece

REMEDY = "remove this checkpoint's folder to go on from an older one"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A file's name inside a checkpoint; no paths, nothing hidden."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_JSON = 1 << 29
"""Bytes of a JSON file that are read at all: an index of a million pieces has a tenth of that."""
CHUNK = 1 << 23


class CorruptCheckpoint(UserError):
    """A checkpoint that is not what was written."""


def corrupt(file: Path, wrong: object) -> CorruptCheckpoint:
    """One line: the file, what is wrong, the remedy."""
    return CorruptCheckpoint(f"{file}: {' '.join(str(wrong).split())}; {REMEDY}")


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    size: int
    sha256: str


def write_bytes(path: Path, chunks: Iterator[bytes | memoryview]) -> Entry:
    """A new file, on disk for good; hashed on its way there, so that the hash is of what was meant."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as stream:
        for chunk in chunks:
            digest.update(chunk)
            stream.write(chunk)
            size += len(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return Entry(size, digest.hexdigest())


def write_json(path: Path, value: Any, indent: int | None = None) -> Entry:
    separators = (",", ":") if indent is None else None
    return write_bytes(path, iter([json.dumps(value, indent=indent, separators=separators, allow_nan=False).encode()]))


def write_shard(path: Path, pieces: Mapping[str, Piece]) -> Entry:
    """A safetensors file of pieces. Its metadata says where in the whole tensors they lie, in the words of
    ``torch.distributed.checkpoint``, whose HuggingFaceStorageReader can read it therefore."""
    return write_bytes(path, _shard_bytes(pieces))


def _shard_bytes(pieces: Mapping[str, Piece]) -> Iterator[bytes | memoryview]:
    # the widest first: then every tensor is aligned to its element size
    ordered = sorted(pieces.items(), key=lambda item: (-item[1].values.element_size(), item[0]))
    where = {
        name: {"saved_offsets": list(piece.box.offset), "whole_shape": list(piece.whole)} for name, piece in ordered
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "DCP_SHARDING_INFO": json.dumps(where)}}
    position = 0
    for name, piece in ordered:
        end = position + piece.values.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[piece.values.dtype],
            "shape": list(piece.box.shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for _, piece in ordered:
        view = _memory(piece.values)
        yield from (view[start : start + CHUNK] for start in range(0, len(view), CHUNK))


def _memory(values: Tensor) -> memoryview:
    return values.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def read_json(path: Path) -> Any:
    """Strict JSON: no NaN, no key twice, of sane size and depth. Raises CorruptCheckpoint."""
    try:
        if path.is_symlink() or path.stat().st_size > MOST_JSON:
            raise ValueError("no file of a checkpoint")
        return json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise corrupt(path, f"corrupt ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_file(path: Path, entry: Entry) -> None:
    """Raises CorruptCheckpoint unless every byte is as the manifest says."""
    try:
        whole = not path.is_symlink() and path.is_file() and path.stat().st_size == entry.size
        right = whole and hash_file(path) == entry.sha256
    except OSError as error:
        raise corrupt(path, f"cannot be read ({error})") from error
    if not right:
        raise corrupt(path, "corrupt (size or SHA-256 differs from the manifest)")


def sync_folder(folder: Path) -> None:
    """Makes the folder's list of names survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def natural(value: Any) -> int:
    """A count read from JSON. Raises ValueError for anything else (true is no count)."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value
