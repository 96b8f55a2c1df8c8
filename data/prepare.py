"""Text to token files, once: a folder named by the fingerprint of everything that went into it.

The folder appears by a rename when it is complete, so a killed preparation leaves nothing half-made, and two
preparing at once do not harm each other.
"""

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
from farside.data.sources import SPLITS, read_source
from farside.data.synthetic.needle import WORDINGS, sample_texts
from farside.data.tokenizer import Tokenizer

FORMAT = 1


def prepare(config: DataConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Tokenizes every source; returns the folder. Does nothing when it exists already.

    The folder holds tokenizer.json, <source>.<split>.npy (token ids, each document closed by the end-of-text
    token) and data.json (fingerprint, counts). Raises UserError for a source that cannot be read.
    """
    if not config.sources:
        raise UserError("data.sources: none given; name at least one source of text")
    texts = {name: read_source(name, source) for name, source in sorted(config.sources.items())}
    hashes = {name: {split: _hash_documents(texts[name][split]) for split in SPLITS} for name in texts}
    languages = {name: config.sources[name].language for name in texts}
    described = {"format": FORMAT, "tokenizer": vars(config.tokenizer), "languages": languages, "sources": hashes}
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = Path(config.dir) / fingerprint[:16]
    if (folder / "data.json").is_file():
        return folder
    try:
        Path(config.dir).mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="preparing-", dir=config.dir))
    except OSError as error:
        raise UserError(f"data.dir {config.dir}: cannot be written ({error.strerror}); name another") from error
    unfinished.chmod(0o755)  # others may share what mkdtemp keeps to its owner
    try:
        say(f"training a tokenizer of {config.tokenizer.vocab_size} tokens")
        tokenizer = Tokenizer.train(_tokenizer_texts(config, texts), config.tokenizer.vocab_size)
        tokenizer.save(unfinished / "tokenizer.json")
        counts = {name: _write_source(unfinished, name, texts[name], tokenizer, say) for name in texts}
        summary = {
            "fingerprint": fingerprint,
            "tokenizer_hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "languages": languages,
            "source_hashes": hashes,
            "sources": counts,
        }
        (unfinished / "data.json").write_text(json.dumps(summary, indent=1))
        _publish(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _tokenizer_texts(config: DataConfig, texts: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """Training text of every source, and needles in its language so that their words become tokens."""
    for name, splits in texts.items():
        yield from splits["train"]
        if config.sources[name].language in WORDINGS:
            yield from sample_texts(config.sources[name].language, config.tokenizer.needle_texts, seed=0)


def _publish(unfinished: Path, folder: Path) -> None:
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not (folder / "data.json").is_file():  # somebody else finished first otherwise: equal content
            raise


def _hash_documents(documents: list[str]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.encode()).digest())
    return digest.hexdigest()


def _write_source(
    folder: Path, name: str, splits: dict[str, list[str]], tokenizer: Tokenizer, say: Callable[[str], None]
) -> dict[str, int]:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    counts: dict[str, int] = {}
    for split in SPLITS:
        ids: list[int] = []
        for document in tokenizer.encode_batch(splits[split]):
            ids += [*document, tokenizer.end_of_text]
        np.save(folder / f"{name}.{split}.npy", np.array(ids, dtype=dtype), allow_pickle=False)
        counts[f"{split}_tokens"] = len(ids)
        counts[f"{split}_bytes"] = sum(len(document.encode()) for document in splits[split])
    say(f"{name}: {counts['train_tokens']:,} training tokens")
    return counts


class Prepared:
    """A prepared folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "data.json").is_file():
            raise UserError(f"{folder}: no prepared data there; run `farside data prepare` first")
        self.summary: dict[str, Any] = json.loads((folder / "data.json").read_text())
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
        if name not in self.summary["sources"]:
            raise UserError(f"no source {name!r} among the prepared ones ({', '.join(self.names)})")
        path = self.folder / f"{name}.{split}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: no token file ({' '.join(str(error).split())}); {_REMEDY}") from error

    def check(self, at_once: int = 1 << 24) -> None:
        """Reads every token file once. Raises UserError naming one that is not of this tokenizer and these counts: a
        foreign token would only show as a wrong loss, or end the run in the middle."""
        for name in self.names:
            for split in SPLITS:
                path, tokens = self.folder / f"{name}.{split}.npy", self.tokens(name, split)
                expected = self.summary["sources"][name][f"{split}_tokens"]
                if tokens.ndim != 1 or tokens.dtype.kind != "u" or len(tokens) != expected:
                    raise UserError(f"{path}: not the {expected:,} tokens that data.json tells of; {_REMEDY}")
                highest = max((int(tokens[i : i + at_once].max()) for i in range(0, len(tokens), at_once)), default=0)
                if highest >= self.tokenizer.vocab_size:
                    raise UserError(
                        f"{path}: holds token {highest:,}, but the tokenizer beside it has "
                        f"{self.tokenizer.vocab_size:,}: a token file of another vocabulary; {_REMEDY}"
                    )


_REMEDY = "remove this folder, so that the data is prepared again"
