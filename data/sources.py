"""Where text comes from: a stream of (split, document) per source, of which memory holds one document.

No document is in two splits: where a source's documents come together, a hash of the text deals them out; where
every split has its own files, held-out splits are read first and the training split lacks what they hold.
"""

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import SourceConfig, SourceKind
from farside.data.readers import read_datasets, read_files
from farside.data.repositories import find_repositories, read_repositories, watched

SPLITS = ("train", "validation", "haystack")
HELD_OUT_FIRST = ("haystack", "validation", "train")
_PACKAGE_ROOT = Path(__file__).resolve().parent.parent


class Source:
    """Documents of data.sources.NAME. Errors are UserErrors that name this key or a file and its line or row."""

    def __init__(self, name: str, config: SourceConfig) -> None:
        self.config, self.key = config, f"data.sources.{name}"
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"{self.key}: names files, so give it letters, digits, _ and - only")
        if config.splits and set(config.splits) != set(SPLITS):
            raise UserError(f"{self.key}.splits: give {', '.join(SPLITS)}, each once, or none of them and path")
        wrong = set(config.shares) != set(SPLITS) or min(config.shares.values()) <= 0
        if wrong or abs(sum(config.shares.values()) - 1) > 1e-9:
            raise UserError(f"{self.key}.shares: give {', '.join(SPLITS)}, each above 0, with 1 as their sum")
        stands_alone = config.kind is SourceKind.python_stdlib or (
            config.splits and config.kind is not SourceKind.datasets
        )
        if not config.path and not stands_alone:
            raise UserError(f"{self.key}.path: empty; name a folder with train.txt, validation.txt, haystack.txt")

    def documents(self) -> Iterator[tuple[str, str]]:
        """(split, text), in an order that the files decide alone; none is empty, no text is in two splits."""
        held_out: dict[bytes, str] = {}
        empty = set(SPLITS)
        for split, document in self._stream():
            digest = hashlib.sha256(document.encode()).digest()[:16]
            if split == "train":
                if digest in held_out:
                    continue
            elif held_out.setdefault(digest, split) != split:
                continue
            empty.discard(split)
            yield split, document
        if empty:
            hint = " (lines that hold a form feed part them)" if self.config.kind is SourceKind.text else ""
            raise UserError(f"{self.key}: no document for {min(empty)}; give more documents{hint} or other shares")

    def _stream(self) -> Iterator[tuple[str, str]]:
        config = self.config
        if config.kind is SourceKind.python_stdlib:
            yield from _python_stdlib(config.max_bytes)
        elif config.kind is SourceKind.datasets:
            yield from self._datasets()
        elif parts := self._parts():
            for split in HELD_OUT_FIRST:
                yield from ((split, document) for document in self._read(parts[split]))
        else:
            yield from self._dealt(self._read(self._find(config.path, f"{self.key}.path")))

    def _datasets(self) -> Iterator[tuple[str, str]]:
        config, folder = self.config, _folder(self.config.path)
        if config.splits:
            for split in HELD_OUT_FIRST:
                rows = read_datasets(self.key, config, folder, config.splits[split])
                yield from ((split, document) for document in rows)
        else:
            yield from self._dealt(read_datasets(self.key, config, folder, None))

    def _dealt(self, documents: Iterator[str]) -> Iterator[tuple[str, str]]:
        """Split by the text's hash: equal texts fall alike, whatever is added or removed beside them."""
        for document in documents:
            place = int.from_bytes(hashlib.sha256(document.encode()).digest()[16:24], "little") / 2**64
            for split in HELD_OUT_FIRST:
                place -= self.config.shares[split]
                if place < 0 or split == "train":
                    yield split, document
                    break

    def _read(self, files: list[Path]) -> Iterator[str]:
        if self.config.kind is SourceKind.repositories:
            return read_repositories(self.key, files, self.config)
        return read_files(self.key, files, self.config)

    def _parts(self) -> dict[str, list[Path]] | None:
        """Files of every split, where each has its own."""
        config = self.config
        if config.splits:
            return {split: self._find(config.splits[split], f"{self.key}.splits.{split}") for split in SPLITS}
        folder = _folder(config.path) if config.kind is SourceKind.text else None
        if folder is None:
            return None
        parts = {split: [folder / f"{split}.txt"] for split in SPLITS}
        for (path,) in parts.values():
            if not path.is_file():
                raise UserError(
                    f"{self.key}: {path} is missing; every source needs train, validation and haystack files"
                )
        return parts

    def _find(self, path: str, key: str) -> list[Path]:
        """The file, or what matches the glob in order of name; for repositories their folders."""
        if self.config.kind is SourceKind.repositories:
            folder = _folder(path)
            if folder is None:
                raise UserError(f"{key}: no folder {path!r}; name one repository or a folder of repositories")
            return find_repositories(key, folder)
        for root in (Path.cwd(), _PACKAGE_ROOT):
            if (root / path).is_file():
                return [root / path]
            pattern = Path(path)
            start = Path(pattern.anchor) if pattern.is_absolute() else root
            relative = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
            found = sorted(file for file in start.glob(str(relative)) if file.is_file()) if relative.parts else []
            if found:
                return found
        what = "folder" if self.config.kind is SourceKind.text else "file or glob that matches any"
        hint = "; name one with train.txt, validation.txt, haystack.txt, or a file" if what == "folder" else ""
        raise UserError(f"{key}: no {what} {path!r}{hint}")

    def files(self) -> list[Path] | None:
        """Every file that the documents come from, for a cache to watch; None where that is not known."""
        config = self.config
        if config.kind is SourceKind.python_stdlib:
            return None
        if config.kind is SourceKind.datasets:
            folder = _folder(config.path)
            return None if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
        parts = self._parts() or {"all": self._find(config.path, f"{self.key}.path")}
        found = [path for paths in parts.values() for path in paths]
        if config.kind is SourceKind.repositories:
            return sorted(file for folder in found for file in watched(folder))
        return found


def _folder(path: str) -> Path | None:
    return next((root / path for root in (Path.cwd(), _PACKAGE_ROOT) if path and (root / path).is_dir()), None)


def _python_stdlib(max_bytes: int) -> Iterator[tuple[str, str]]:
    """The interpreter's own standard library: one document a package or module, as a code repository is one.

    Split by a hash of the name (about 85/5/10), so that the splits never share a module.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "__pycache__", "test", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
    splits: dict[str, list[str]] = {split: [] for split in HELD_OUT_FIRST}
    taken = 0
    for entry in sorted(root.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).digest()):
        if entry.name in skip or entry.name.startswith(("config-", "_sysconfigdata")):
            continue
        files = [entry] if entry.suffix == ".py" else sorted(entry.rglob("*.py")) if entry.is_dir() else []
        files = [file for file in files if not set(file.relative_to(root).parts) & {*skip, "tests"}]
        document = "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files).strip()
        if not document or taken + len(document) > max_bytes:
            continue
        taken += len(document)
        bucket = hashlib.sha256(entry.name.encode()).digest()[-1] % 20
        splits["haystack" if bucket < 2 else "validation" if bucket == 2 else "train"].append(document)
    if not all(splits.values()):
        raise UserError(f"data.sources: the standard library in {root} gives no code for some split; raise max_bytes")
    return ((split, document) for split, documents in splits.items() for document in documents)
