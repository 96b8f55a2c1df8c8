"""A source cut into shards: what a worker tokenizes in one piece, and what a killed preparation need not repeat.

A source is read once to plan it. The plan is kept beside the prepared data for as long as none of the source's files
changes, so that starting a run does not read all text again: a file counts as unchanged by its path, size, inode,
time of modification and of change (ctime, which no copying tool can set back).
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from farside.configs.schema import SourceConfig
from farside.data.sources import SPLITS, Source

_RACY_NANOSECONDS = 2_000_000_000
"""A file changed this shortly before it is read may change again within one tick of its clock: no plan is kept."""


_READERS = 1
"""To be raised when a reader comes to give other documents of the same files: plans made before are made again."""
_FREE = ("language", "max_epochs")
"""Settings of a source that its documents do not depend on."""


@dataclass(frozen=True)
class Shard:
    """Consecutive documents of one split. sha256: over the SHA-256 of each."""

    documents: int
    bytes: int
    sha256: str


@dataclass
class SplitPlan:
    shards: list[Shard] = field(default_factory=list)
    sha256: str = ""
    """Over the SHA-256 of each document, whatever the shards."""

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


Plan = dict[str, SplitPlan]
"""By split."""


class Digest:
    """Of documents in order."""

    def __init__(self) -> None:
        self.hash, self.documents, self.bytes = hashlib.sha256(), 0, 0

    def add(self, text: bytes) -> None:
        self.hash.update(hashlib.sha256(text).digest())
        self.documents += 1
        self.bytes += len(text)

    def shard(self) -> Shard:
        return Shard(self.documents, self.bytes, self.hash.hexdigest())


def cut(source: Source, shard_bytes: int) -> Iterator[tuple[str, list[bytes]]]:
    """(split, documents as UTF-8) of every shard as it fills; at most one begun shard a split is held."""
    begun: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, document in source.documents():
        text = document.encode()
        if begun[split] and sizes[split] + len(text) > shard_bytes:
            yield split, begun[split]
            begun[split], sizes[split] = [], 0
        begun[split].append(text)
        sizes[split] += len(text)
    yield from ((split, documents) for split, documents in begun.items() if documents)


def make_plan(source: Source, shard_bytes: int, advance: Callable[[int], None]) -> Plan:
    """Reads the whole source. advance: told the bytes of every shard."""
    plan = {split: SplitPlan() for split in SPLITS}
    whole = {split: Digest() for split in SPLITS}
    for split, documents in cut(source, shard_bytes):
        digest = Digest()
        for text in documents:
            digest.add(text)
            whole[split].add(text)
        plan[split].shards.append(digest.shard())
        advance(digest.bytes)
    for split, digest in whole.items():
        plan[split].sha256 = digest.hash.hexdigest()
    return plan


def plan_source(
    source: Source, shard_bytes: int, cache: Path, advance: Callable[[int], None] = lambda size: None
) -> Plan:
    """The plan in ``cache`` if it was made of the same files and settings, else a new one, kept there if it can be."""
    began, files = time.time_ns(), source.files()
    if files is None:
        return make_plan(source, shard_bytes, advance)
    state = _state(files)
    settled = all(max(entry[3:5]) < began - _RACY_NANOSECONDS for entry in state)
    record = {"readers": _READERS, "settings": _settings(source.config), "shard_bytes": shard_bytes, "files": state}
    path = cache / f"{hashlib.sha256(json.dumps(record).encode()).hexdigest()[:32]}.json"
    if settled and (kept := _read(path)) is not None:
        return kept
    plan = make_plan(source, shard_bytes, advance)
    if settled and _state(files) == state:
        with contextlib.suppress(OSError):  # it saves time only: a folder that cannot be written may be read
            cache.mkdir(parents=True, exist_ok=True)
            write_json(path, {split: asdict(part) for split, part in plan.items()})
    return plan


def _state(files: list[Path]) -> list[list[Any]]:
    """(path, size, inode, modified, changed) of every file."""
    found = []
    for path in files:
        about = path.stat()  # of what a link leads to: that is what is read
        found.append([str(path), about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns])
    return found


def _settings(config: SourceConfig) -> dict[str, Any]:
    decisive = {key: value for key, value in vars(config).items() if key not in _FREE}
    return {key: value.value if isinstance(value, Enum) else value for key, value in decisive.items()}


def _read(path: Path) -> Plan | None:
    """None for a file that is missing or no plan: it is made again."""
    try:
        record = json.loads(path.read_text())
        return {
            split: SplitPlan([Shard(**shard) for shard in record[split]["shards"]], record[split]["sha256"])
            for split in SPLITS
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, record: Any) -> None:
    """The file is complete or not there; two writers at once do not mix."""
    handle, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise
