"""Code repositories as documents: all text files of one, in order of path, each under a line that names it.

A model that is to work in a repository must see one as a whole: files apart teach no link between them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from farside.configs.errors import UserError
from farside.configs.schema import SourceConfig

VERSION_CONTROL = frozenset({".git", ".hg", ".svn", ".jj"})
VENDORED = frozenset(
    {"node_modules", "bower_components", "vendor", "third_party", "site-packages", "__pycache__", "venv", ".venv"}
)
MADE = (".min.js", ".min.css", ".map", ".lock", "-lock.json", "-lock.yaml", ".svg")
"""Names of files that no one wrote."""
HEADER = "# file: {}\n"


def find_repositories(key: str, folder: Path) -> list[Path]:
    """``folder`` itself if it is under version control, else its folders in order of name, each a repository."""
    if any((folder / name).exists() for name in VERSION_CONTROL):
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    if not found:
        raise UserError(f"{key}: {folder} holds no folder; name one repository (with .git) or a folder of repositories")
    return found


def read_repositories(key: str, folders: list[Path], config: SourceConfig) -> Iterator[str]:
    """One document a repository. Raises UserError naming one that holds no text or cannot be read."""
    for folder in folders:
        try:
            document = "".join(_files(folder, config)).strip()
        except OSError as error:
            raise UserError(f"{key}: {error.filename} cannot be read ({error.strerror}); mend or remove it") from error
        if not document:
            raise UserError(f"{key}: {folder} holds no text file of at most max_file_bytes; remove it")
        yield document.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # a name may be any bytes


def _files(folder: Path, config: SourceConfig) -> Iterator[str]:
    """Files that fit into max_bytes together; one that does not is left out whole, and smaller ones may follow."""
    room = config.max_bytes
    for path in sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts):
        if path.stat().st_size > min(config.max_file_bytes, room):
            continue
        text = _text(path)
        if text is None:
            continue
        piece = f"{HEADER.format(path.relative_to(folder).as_posix())}{text}\n"
        size = len(piece.encode("utf-8", "surrogateescape"))
        if size <= room:
            room -= size
            yield piece


def watched(folder: Path) -> Iterator[Path]:
    """What may change the document: its files, and the folders in which others may appear."""
    for root, files in _folders(folder):
        yield root
        yield from files


def _walk(folder: Path) -> Iterator[Path]:
    return (file for _, files in _folders(folder) for file in files)


def _folders(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders with their regular files; links are not followed: they lead out of the repository, or to a file that
    comes anyway."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name not in VENDORED | VERSION_CONTROL]
        kept = (Path(root) / name for name in names if name not in VERSION_CONTROL and not name.endswith(MADE))
        yield Path(root), [path for path in kept if path.is_file() and not path.is_symlink()]


def _text(path: Path) -> str | None:
    """None for a binary file, that is one with NUL or bytes that are not UTF-8, and for a blank one."""
    content = path.read_bytes()
    if b"\0" in content:
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text.strip() or None
