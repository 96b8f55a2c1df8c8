"""Text to token files, once: a folder named by the fingerprint of everything that went into it.

The folder appears by a rename when it is complete. Until then its finished shards lie in ``preparing-<fingerprint>``
beside it: a preparation that was killed, or that met a full disk, goes on from them. A lock lets one process prepare
while others wait for its result; where a file system has no locks, two write the same bytes under names of their own.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from farside.configs.errors import UserError
from farside.configs.schema import DataConfig
from farside.data.assemble import join, tokenize_missing
from farside.data.indexed import IndexedTokens
from farside.data.progress import Bar
from farside.data.shards import Plan, plan_source, write_json
from farside.data.sources import SPLITS, Source
from farside.data.synthetic.needle import WORDINGS, sample_texts
from farside.data.tokenizer import Tokenizer
from farside.data.tokenizing import hash_file

FORMAT = 2


def prepare(config: DataConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Tokenizes every source; returns the folder. Does nothing when it exists already.

    The folder holds tokenizer.json, <source>.<split>.bin and .idx (token ids, each document closed by the end-of-text
    token) and data.json (fingerprint, counts, hashes). Raises UserError for a source that cannot be read, a folder
    that cannot be written, and a full disk; what is finished then stays.
    """
    if not config.sources:
        raise UserError("data.sources: none given; name at least one source of text")
    sources = {name: Source(name, config.sources[name]) for name in sorted(config.sources)}
    given = Tokenizer.adopt(Path(config.tokenizer.path)) if config.tokenizer.path else None
    root = Path(config.dir)
    with Bar(say) as bar:
        plans: dict[str, Plan] = {}
        for name, source in sources.items():
            bar.begin(f"reading {name}")
            plans[name] = plan_source(source, config.shard_bytes, root / "plans", bar.advance)
        described = _describe(config, plans, given)
        folder = root / _fingerprint(described)[:16]
        if _is_complete(folder, described):
            return folder
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)
            unfinished = root / f"preparing-{folder.name}"
            with _alone(root / f"{unfinished.name}.lock", say):
                if not _is_complete(folder, described):
                    unfinished.mkdir(exist_ok=True)
                    tokenizer = _tokenizer(config, sources, given, unfinished / "tokenizer.json", say)
                    tokenize_missing(config, sources, plans, unfinished, bar)
                    _publish(_ready(unfinished, plans, described, tokenizer, say), folder)
                    shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _describe(config: DataConfig, plans: dict[str, Plan], given: Tokenizer | None) -> dict[str, Any]:
    """Everything that decides what the token files hold, and nothing else."""
    trained = {"vocab_size": config.tokenizer.vocab_size, "needle_texts": config.tokenizer.needle_texts}
    return {
        "format": FORMAT,
        "tokenizer": {"hash": given.hash} if given else trained,
        "languages": {name: config.sources[name].language for name in plans},
        "source_hashes": {name: {split: plan[split].sha256 for split in SPLITS} for name, plan in plans.items()},
    }


def _fingerprint(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _is_complete(folder: Path, described: dict[str, Any]) -> bool:
    """Raises UserError if the folder holds other data than its name says."""
    if not folder.exists():
        return False
    if not (folder / "data.json").is_file() or _read_summary(folder)["fingerprint"] != _fingerprint(described):
        raise UserError(f"{folder}: does not hold the data that its name tells of; {_REMEDY}")
    return True


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    """What the disk refuses, in one line."""
    try:
        yield
    except OSError as error:
        at = error.filename or root
        raise UserError(
            f"data.dir {root}: cannot be written ({error.strerror}: {at}); make room or name another, then the same "
            "command goes on from the finished shards"
        ) from error


@contextlib.contextmanager
def _alone(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Waits while another process prepares the same; a killed one's lock is free."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process prepares this data: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)


def _tokenizer(
    config: DataConfig, sources: dict[str, Source], given: Tokenizer | None, path: Path, say: Callable[[str], None]
) -> Tokenizer:
    """The one to use, at ``path``."""
    if path.is_file():
        return Tokenizer.load(path)
    tokenizer = given
    if tokenizer is None:
        say(f"training a tokenizer of {config.tokenizer.vocab_size} tokens")
        tokenizer = Tokenizer.train(_training_texts(config, sources), config.tokenizer.vocab_size)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        tokenizer.save(Path(folder) / path.name)
        os.rename(Path(folder) / path.name, path)
    return tokenizer


def _training_texts(config: DataConfig, sources: dict[str, Source]) -> Iterator[str]:
    """Training text of every source, and needles in its language so that their words become tokens."""
    for name, source in sources.items():
        yield from (document for split, document in source.documents() if split == "train")
        if config.sources[name].language in WORDINGS:
            yield from sample_texts(config.sources[name].language, config.tokenizer.needle_texts, seed=0)


def _ready(
    unfinished: Path,
    plans: dict[str, Plan],
    described: dict[str, Any],
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> Path:
    """The complete folder, still inside ``unfinished``."""
    ready = Path(tempfile.mkdtemp(prefix="ready-", dir=unfinished))
    ready.chmod(0o755)  # others may share what mkdtemp keeps to its owner
    counts = join(unfinished, ready, plans, tokenizer.vocab_size, say)
    summary = {
        "fingerprint": _fingerprint(described),
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        **described,
        "sources": counts,
        "files": {path.name: hash_file(path) for path in sorted(ready.iterdir())},
    }
    shutil.copyfile(unfinished / "tokenizer.json", ready / "tokenizer.json")
    write_json(ready / "data.json", summary)
    return ready


def _publish(ready: Path, folder: Path) -> None:
    try:
        os.rename(ready, folder)
    except OSError:
        if not (folder / "data.json").is_file():  # somebody else finished first otherwise: equal content
            raise


class Prepared:
    """A prepared folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "data.json").is_file():
            raise UserError(f"{folder}: no prepared data there; run `farside data prepare` first")
        self.summary = _read_summary(folder)
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        if self.tokenizer.hash != self.summary["tokenizer_hash"]:
            raise UserError(f"{folder / 'tokenizer.json'}: not the tokenizer its token files were made with; {_REMEDY}")

    @property
    def names(self) -> list[str]:
        return sorted(self.summary["sources"])

    def language(self, name: str) -> str:
        return self.summary["languages"][name]

    def tokens(self, name: str, split: str) -> np.ndarray:
        """All token ids of a split, [T], read-only."""
        return self.documents(name, split).tokens

    def documents(self, name: str, split: str) -> IndexedTokens:
        """A split's documents with their bounds. Raises UserError naming file and byte for a damaged file."""
        if name not in self.summary["sources"]:
            there = ", ".join(self.names)
            raise UserError(f"eval.niah.sources or a mixture names {name!r}; data.sources has {there}")
        return IndexedTokens.open(self.folder / f"{name}.{split}")

    def check(self, at_once: int = 1 << 24) -> None:
        """Reads every token file once. Raises UserError naming one that is not of this tokenizer, these counts and
        hashes: a foreign token would only show as a wrong loss, or end the run in the middle."""
        for name in self.names:
            for split in SPLITS:
                path, documents = self.folder / f"{name}.{split}.bin", self.documents(name, split)
                counts, tokens = self.summary["sources"][name], documents.tokens
                for what, found in (("tokens", len(tokens)), ("documents", len(documents))):
                    if found != counts[f"{split}_{what}"]:
                        expected = counts[f"{split}_{what}"]
                        raise UserError(f"{path}: {found:,} {what}, but data.json tells of {expected:,}; {_REMEDY}")
                for start in range(0, len(tokens), at_once):
                    # a negative id is a huge one here
                    piece = tokens[start : start + at_once].astype(np.uint32, copy=False)
                    if int(piece.max()) >= self.tokenizer.vocab_size:
                        place = start + int((piece >= self.tokenizer.vocab_size).argmax())
                        raise UserError(
                            f"{path}: byte {place * tokens.itemsize:,} holds token {int(tokens[place]):,}, but the "
                            f"tokenizer beside it has {self.tokenizer.vocab_size:,}: a token file of another "
                            f"vocabulary; {_REMEDY}"
                        )
                for file in (path, path.with_suffix(".idx")):
                    if hash_file(file) != self.summary["files"][file.name]:
                        raise UserError(f"{file}: not the bytes that were written here; {_REMEDY}")


def _read_summary(folder: Path) -> dict[str, Any]:
    """data.json. Raises UserError if it is none, or its fingerprint is not that of what it tells of."""
    path = folder / "data.json"
    try:
        summary = json.loads(path.read_text())
        if summary.get("format") != FORMAT:
            raise UserError(f"{path}: of another version of the format than {FORMAT}; {_REMEDY}")
        described = {key: summary[key] for key in ("format", "tokenizer", "languages", "source_hashes")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no summary of prepared data ({type(error).__name__}: {error}); {_REMEDY}") from error
    if summary.get("fingerprint") != _fingerprint(described):
        raise UserError(f"{path}: its fingerprint is not that of the sources it tells of; {_REMEDY}")
    return summary


_REMEDY = "remove this folder, so that the data is prepared again"
