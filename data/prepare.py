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
from farside.data.indexed import IndexedTokens, IndexedWriter, dtype_for
from farside.data.sources import SPLITS, read_source
from farside.data.synthetic.needle import WORDINGS, sample_texts
from farside.data.tokenizer import Tokenizer

FORMAT = 2


def prepare(config: DataConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Tokenizes every source; returns the folder. Does nothing when it exists already.

    The folder holds tokenizer.json, <source>.<split>.bin and .idx (token ids, each document closed by the end-of-text
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
    counts: dict[str, int] = {}
    for split in SPLITS:
        with IndexedWriter(folder / f"{name}.{split}", dtype_for(tokenizer.vocab_size)) as writer:
            for document in tokenizer.encode_batch(splits[split]):
                writer.add([*document, tokenizer.end_of_text])
            writer.finish()
        counts[f"{split}_tokens"] = sum(writer.lengths)
        counts[f"{split}_documents"] = len(writer.lengths)
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
        return self.documents(name, split).tokens

    def documents(self, name: str, split: str) -> IndexedTokens:
        """A split's documents with their bounds. Raises UserError naming file and byte for a damaged file."""
        if name not in self.summary["sources"]:
            raise UserError(f"no source {name!r} among the prepared ones ({', '.join(self.names)})")
        return IndexedTokens.open(self.folder / f"{name}.{split}")

    def check(self, at_once: int = 1 << 24) -> None:
        """Reads every token file once. Raises UserError naming one that is not of this tokenizer and these counts: a
        foreign token would only show as a wrong loss, or end the run in the middle."""
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


_REMEDY = "remove this folder, so that the data is prepared again"
