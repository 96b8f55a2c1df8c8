"""A packing plan: which pieces of which documents make up each row. Made once, kept on disk, read memory-mapped.

The file is a line of JSON (what the plan is of, how large, a checksum) and three arrays behind it. It appears by one
rename, complete; its name is the fingerprint of everything that decides it, so that it is never out of date. A
file that is torn, damaged or another plan's is made again: a plan is a function of what its name stands for.
"""

import fcntl
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from farside.configs.errors import UserError

FORMAT = "farside packing plan 1"
HEADER = 4096
"""Bytes of the line of JSON, filled up with spaces."""


@dataclass(frozen=True)
class Plan:
    """R rows of P pieces: row r holds pieces row_starts[r] .. row_starts[r + 1], each a stretch of the tokens."""

    row_starts: np.ndarray
    """[R + 1] int64."""
    starts: np.ndarray
    """[P] int64: the piece's first token in the source's flat array."""
    lengths: np.ndarray
    """[P] int32: its tokens."""
    facts: dict[str, Any]
    """Small JSON: tokens predicted, share of padding, epochs, shares of lengths."""

    @property
    def rows(self) -> int:
        return len(self.row_starts) - 1

    @classmethod
    def of_rows(cls, rows_P: np.ndarray, starts_P: np.ndarray, lengths_P: np.ndarray, facts: dict[str, Any]) -> "Plan":
        """From each piece's row; pieces keep their order within it."""
        order = np.argsort(rows_P, kind="stable")
        counts = np.bincount(rows_P) if len(rows_P) else np.zeros(0, dtype=np.int64)
        row_starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return cls(row_starts, starts_P[order].astype(np.int64), lengths_P[order].astype(np.int32), facts)


@dataclass(frozen=True)
class PlanStore:
    """Plans of one prepared data set. folder: where their files go, shared by runs and ranks."""

    folder: Path
    fingerprint: str
    """Of the data set."""

    def open(self, described: Mapping[str, Any], make: Callable[[], Plan]) -> Plan:
        """The plan of ``described`` (JSON that names all that decides it beside the data), made if there is none.

        Processes of one host wait for the one that makes it. Raises UserError if the folder cannot be written.
        """
        identity = json.dumps({"format": FORMAT, "data": self.fingerprint, **described}, sort_keys=True)
        name = hashlib.sha256(identity.encode()).hexdigest()[:24]
        path = self.folder / f"{name}.plan"
        plan = read_plan(path, name)
        if plan is not None:
            return plan
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # dies with its holder; where it does not reach, the rename suffices
                plan = read_plan(path, name)
                if plan is None:
                    write_plan(path, name, make())
                    plan = read_plan(path, name)
        except OSError as error:
            raise UserError(f"{self.folder}: packing plans cannot be written ({error.strerror}); free it") from error
        assert plan is not None, "a plan just written can be read"
        return plan


def write_plan(path: Path, name: str, plan: Plan) -> None:
    """Writes beside, syncs, renames."""
    arrays = (plan.row_starts, plan.starts, plan.lengths)
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    header = {
        "format": FORMAT,
        "name": name,
        "rows": plan.rows,
        "pieces": len(plan.starts),
        "crc32": checksum,
        "facts": plan.facts,
    }
    line = json.dumps(header).encode()
    assert len(line) < HEADER
    descriptor, unfinished = tempfile.mkstemp(prefix=f"{name}-", suffix=".unfinished", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(line.ljust(HEADER - 1) + b"\n")
            for array in arrays:
                array.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o644)  # others may share what mkstemp keeps to its owner
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def read_plan(path: Path, name: str) -> Plan | None:
    """The plan at ``path``, memory-mapped; None if there is none, or not a whole one of this name."""
    try:
        with path.open("rb") as file:
            header = _header(file)
            if header is None or header["name"] != name:
                return None
            rows, pieces = header["rows"], header["pieces"]
            if os.fstat(file.fileno()).st_size != HEADER + 8 * (rows + 1) + 12 * pieces:
                return None
            if _crc32(file) != header["crc32"]:
                return None
    except FileNotFoundError:
        return None
    # as plain arrays over the mapping: slicing np.memmap itself is slow
    flat = lambda dtype, at, count: np.asarray(np.memmap(path, dtype, "r", HEADER + at, (count,)))  # noqa: E731
    if not pieces:
        return Plan(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32), header["facts"])
    return Plan(
        flat(np.int64, 0, rows + 1),
        flat(np.int64, 8 * (rows + 1), pieces),
        flat(np.int32, 8 * (rows + 1 + pieces), pieces),
        header["facts"],
    )


def _header(file: BinaryIO) -> dict[str, Any] | None:
    try:
        header = json.loads(file.read(HEADER))
    except ValueError:
        return None
    return header if isinstance(header, dict) and header.get("format") == FORMAT else None


def _crc32(file: BinaryIO, at_once: int = 1 << 20) -> int:
    """Of the rest of the file; read, not mapped, so that it does not count as this process's memory."""
    checksum = 0
    while block := file.read(at_once):
        checksum = zlib.crc32(block, checksum)
    return checksum
