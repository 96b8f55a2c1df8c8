"""Megatron's token files: PREFIX.bin holds all token ids, PREFIX.idx where documents begin. Memory-mapped.

The format is megatron-core's (0.16.1, ``core/datasets/indexed_dataset.py``), written and read here without it:
importing that one module takes 14 s where torch alone takes 4, since its parent packages load everything else, and
every rank and test opens token files. The tests read ours with megatron-core and megatron-core's with ours.

Layout of .idx, little-endian: magic (9 bytes), version (u64), code of the dtype (u8), S sequences (u64), D = N + 1
bounds of documents (u64), lengths [S] int32, byte pointers [S] int64, bounds [D] int64 (as sequence numbers).
"""

import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from farside.configs.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES: dict[int, type[np.int32] | type[np.uint16]] = {4: np.int32, 8: np.uint16}
"""Of the codes of Megatron's ``DType`` those that it writes token ids in."""
HEADER = struct.Struct("<9sQBQQ")
LONGEST = 2**31 - 1
"""Tokens of a document: lengths are int32."""
_AT_ONCE = 1 << 20
"""Entries of an index looked at together, so that checking a long one takes little memory."""
_REMEDY = "it was cut off or overwritten; prepare the data again"


def dtype_for(vocab_size: int) -> np.dtype:
    """The narrower of Megatron's two dtypes that holds every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


@dataclass(frozen=True)
class IndexedTokens:
    """Token ids of N documents, T in all."""

    tokens: np.ndarray
    """[T], read-only and memory-mapped: documents one behind another, in order."""
    lengths: np.ndarray
    """[N] int32: tokens a document, its end-of-text included."""
    offsets: np.ndarray
    """[N+1] int64: document n is ``tokens[offsets[n] : offsets[n + 1]]``."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def open(cls, prefix: Path) -> "IndexedTokens":
        """Opens and checks PREFIX.idx against itself and the size of PREFIX.bin. A document of several of Megatron's
        sequences comes as one. Raises UserError naming file and byte for anything that does not fit."""
        index, data = _index_path(prefix), _data_path(prefix)
        try:
            size, stored = index.stat().st_size, data.stat().st_size
            with index.open("rb") as file:
                dtype, sequences, bounds = _read_header(index, file.read(HEADER.size), size)
            lengths = _map(index, np.dtype("<i4"), HEADER.size, sequences)
            ends = _map(index, np.dtype("<i8"), HEADER.size + 12 * sequences, bounds)
            starts = _checked_starts(index, lengths, dtype.itemsize)
            if stored != starts[-1] * dtype.itemsize:
                raise UserError(
                    f"{data}: ends at byte {stored:,}, but {index.name} tells of {starts[-1] * dtype.itemsize:,} "
                    f"bytes; {_REMEDY}"
                )
            tokens = _map(data, dtype, 0, int(starts[-1]))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); prepare the data again") from error
        _check_bounds(index, ends, sequences)
        if sequences == bounds - 1 and bool((np.diff(ends) == 1).all()):
            return cls(tokens, lengths, starts)
        offsets = starts[np.asarray(ends)]
        return cls(tokens, np.diff(offsets).astype(np.int32), offsets)


def _index_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")


def _data_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def _read_header(path: Path, header: bytes, size: int) -> tuple[np.dtype, int, int]:
    """(dtype, sequences, bounds). size: of the whole file."""
    if len(header) < HEADER.size:
        raise UserError(f"{path}: ends at byte {size}, inside its header of {HEADER.size}; {_REMEDY}")
    magic, version, code, sequences, bounds = HEADER.unpack(header)
    if magic != MAGIC:
        raise UserError(f"{path}: byte 0: {magic!r} is not how an index of token files begins; {_REMEDY}")
    if version != VERSION:
        raise UserError(f"{path}: byte 9: version {version:,} of the format, not {VERSION}; {_REMEDY}")
    if code not in CODES:
        known = ", ".join(f"{number} ({kind.__name__})" for number, kind in CODES.items())
        raise UserError(f"{path}: byte 17: dtype code {code} is none of {known}; {_REMEDY}")
    expected = HEADER.size + 12 * sequences + 8 * bounds
    if size != expected:
        raise UserError(
            f"{path}: ends at byte {size:,}, but its header (byte 18) tells of {sequences:,} sequences and {bounds:,} "
            f"bounds, {expected:,} bytes; {_REMEDY}"
        )
    if bounds < 1:
        raise UserError(f"{path}: byte 26: not one bound of a document; {_REMEDY}")
    return np.dtype(CODES[code]).newbyteorder("<"), sequences, bounds


def _map(path: Path, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    if count == 0:  # nothing cannot be mapped
        empty = np.empty(0, dtype)
        empty.flags.writeable = False
        return empty
    return np.memmap(path, dtype, "r", offset, (count,)).view(np.ndarray)


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))


def _checked_starts(path: Path, lengths: np.ndarray, itemsize: int) -> np.ndarray:
    """First token of every sequence and the end of all, [S+1] int64; the file's own pointers must say the same.

    They are read, not mapped: whoever has the starts needs them no more.
    """
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    with path.open("rb") as file:
        file.seek(HEADER.size + 4 * len(lengths))
        for piece in _pieces(len(lengths)):
            negative = np.flatnonzero(lengths[piece] < 0)
            if len(negative):
                place = piece.start + int(negative[0])
                raise UserError(
                    f"{path}: byte {HEADER.size + 4 * place:,}: sequence {place:,} has {lengths[place]:,} tokens; "
                    f"{_REMEDY}"
                )
            inside = slice(piece.start + 1, piece.stop + 1)
            np.cumsum(lengths[piece], dtype=np.int64, out=starts[inside])
            starts[inside] += starts[piece.start]
            pointers = np.frombuffer(file.read(8 * (piece.stop - piece.start)), dtype="<i8")
            wrong = np.flatnonzero(pointers != starts[piece] * itemsize)
            if len(wrong):
                place = piece.start + int(wrong[0])
                raise UserError(
                    f"{path}: byte {HEADER.size + 4 * len(lengths) + 8 * place:,}: sequence {place:,} points to byte "
                    f"{pointers[wrong[0]]:,}, but the lengths before it end at {starts[place] * itemsize:,}; {_REMEDY}"
                )
    return starts


def _check_bounds(path: Path, ends: np.ndarray, sequences: int) -> None:
    base = HEADER.size + 12 * sequences
    if ends[0] != 0 or ends[-1] != sequences:
        place = 0 if ends[0] != 0 else len(ends) - 1
        raise UserError(
            f"{path}: byte {base + 8 * place:,}: documents cover sequences {ends[0]:,} to {ends[-1]:,} of "
            f"{sequences:,}; {_REMEDY}"
        )
    falling = np.flatnonzero(np.diff(ends) < 0)
    if len(falling):
        place = int(falling[0]) + 1
        raise UserError(f"{path}: byte {base + 8 * place:,}: document {place:,} ends before it begins; {_REMEDY}")


class IndexedWriter:
    """Writes PREFIX.bin as documents come and PREFIX.idx at ``finish``; files without it are not to be opened.

    Holds four bytes a document. Raises OSError as files do (a full disk).
    """

    def __init__(self, prefix: Path, dtype: np.dtype | type) -> None:
        self.prefix, self.dtype = prefix, np.dtype(dtype).newbyteorder("<")
        self.code = next(code for code, kind in CODES.items() if np.dtype(kind) == np.dtype(dtype))
        self.lengths = array("i")
        self.file = _data_path(prefix).open("wb")

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """One document, a sequence of its own; tokens must fit the dtype."""
        found = np.asarray(tokens)
        assert not len(found) or (found.min() >= 0 and found.max() <= np.iinfo(self.dtype).max)
        if len(found) > LONGEST:
            raise UserError(f"{self.prefix}: a document of {len(found):,} tokens; split it below {LONGEST:,}")
        self.file.write(found.astype(self.dtype).tobytes())
        self.lengths.append(len(found))

    def extend(self, other: IndexedTokens) -> None:
        """All documents of another of this dtype."""
        assert other.tokens.dtype == self.dtype
        for piece in _pieces(len(other.tokens)):
            self.file.write(other.tokens[piece].tobytes())
        self.lengths.frombytes(other.lengths.astype(np.int32).tobytes())

    def finish(self) -> None:
        """Both files are on the disk when this returns."""
        _sync(self.file)
        self.file.close()
        lengths = np.frombuffer(self.lengths, dtype=np.int32) if len(self.lengths) else np.empty(0, np.int32)
        with _index_path(self.prefix).open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, self.code, len(lengths), len(lengths) + 1))
            file.write(lengths.astype("<i4").tobytes())
            total = 0
            for piece in _pieces(len(lengths)):
                ends = total + np.cumsum(lengths[piece], dtype=np.int64)
                file.write(((ends - lengths[piece]) * self.dtype.itemsize).astype("<i8").tobytes())
                total = int(ends[-1])
            for piece in _pieces(len(lengths) + 1):
                file.write(np.arange(piece.start, piece.stop, dtype="<i8").tobytes())
            _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
