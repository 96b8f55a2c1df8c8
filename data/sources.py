"""Where text comes from: three disjoint lists of documents (train, validation, haystack) per source."""

import hashlib
import sysconfig
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import SourceConfig, SourceKind

SPLITS = ("train", "validation", "haystack")
DOCUMENT_BREAK = "\n\f\n"
_PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def read_source(name: str, source: SourceConfig) -> dict[str, list[str]]:
    """Documents of every split. Raises UserError for missing, empty or undecodable files."""
    if source.kind is SourceKind.python_stdlib:
        return _python_stdlib(source.max_bytes)
    folder = _find(name, source.path)
    return {split: _read_text(name, folder / f"{split}.txt") for split in SPLITS}


def _find(name: str, path: str) -> Path:
    if not path:
        raise UserError(f"data.sources.{name}.path: empty; name a folder with train.txt, validation.txt, haystack.txt")
    for root in (Path.cwd(), _PACKAGE_ROOT):
        if (root / path).is_dir():
            return root / path
    raise UserError(
        f"data.sources.{name}.path: no folder {path!r}; name one with train.txt, validation.txt, haystack.txt"
    )


def _read_text(name: str, path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(
            f"data.sources.{name}: {path} is missing; every source needs train, validation and haystack files"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.sources.{name}: {path} is not UTF-8 (byte {error.start}); convert it") from error
    documents = [document.strip() for document in text.split(DOCUMENT_BREAK)]
    documents = [document for document in documents if document]
    if not documents:
        raise UserError(f"data.sources.{name}: {path} is empty; put text there or remove the source")
    return documents


def _python_stdlib(max_bytes: int) -> dict[str, list[str]]:
    """The interpreter's own standard library: one document a package or module, as a code repository is one.

    Split by a hash of the name (about 85/5/10), so that the splits never share a module.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "__pycache__", "test", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
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
    return splits
