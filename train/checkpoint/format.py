"""One checkpoint: a folder of safetensors and JSON that is complete or invisible. No pickle.

Written beside its place, every file synced, the manifest (sizes and SHA-256 of all files) last, then renamed. Its hash
is the SHA-256 of the manifest, so a parent's hash pins every byte of the parent.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from farside.configs.errors import UserError
from farside.parallel.box import Box, Piece
from farside.train.checkpoint import index
from farside.train.checkpoint.files import (
    DTYPE_NAMES,
    PLAIN_NAME,
    Entry,
    check_file,
    corrupt,
    natural,
    read_json,
    sync_folder,
    write_json,
    write_shard,
)
from farside.train.checkpoint.index import INDEX, TensorReader, Whole

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
UNFINISHED = ".writing-"
REPLACED = ".replaced-"
REMOVED = ".removed-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. state: what was saved beside tensors; hash: SHA-256 of the manifest."""

    path: Path
    step: int
    hash: str
    state: dict[str, Any]
    files: dict[str, Entry] = field(repr=False)
    groups: dict[str, dict[str, Whole]] = field(repr=False)

    def reader(self, group: str) -> TensorReader:
        """Boxes of the group's ("model" or "optimizer") whole tensors."""
        if group not in self.groups:
            raise corrupt(self.path / INDEX, f"no tensors of {group!r}")
        return TensorReader(self.path, group, self.groups[group])

    def tensors(self, group: str) -> dict[str, Tensor]:
        """All whole tensors of a group, on the CPU."""
        return self.reader(group).tensors()

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Every byte of every ``parts``-th file against the manifest, shards also against the index. Raises
        CorruptCheckpoint naming the file that is wrong."""
        by_size = sorted(self.files, key=lambda name: (-self.files[name].size, name))
        for name in by_size[part::parts]:
            check_file(self.path / name, self.files[name])
            if name in self.shards:
                index.check_header(self.path / name, self.shards[name])

    @cached_property
    def shards(self) -> dict[str, dict[str, tuple[str, list[int]]]]:
        """File -> name -> (dtype, shape) of every piece in it."""
        found: dict[str, dict[str, tuple[str, list[int]]]] = {}
        for wholes in self.groups.values():
            for name, whole in wholes.items():
                for file, box in whole.pieces:
                    found.setdefault(file, {})[name] = (DTYPE_NAMES[whole.dtype], list(box.shape))
        return found


def shard_name(group: str, number: int, count: int) -> str:
    """Of the file that rank ``number`` of ``count`` writes; one rank's is a file that any reader of safetensors takes
    for the whole."""
    return f"{group}.safetensors" if count == 1 else f"{group}-{number + 1:05d}-of-{count:05d}.safetensors"


def write(path: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> Checkpoint:
    """Writes a checkpoint of whole tensors and makes it visible at once. tensors: group -> name -> tensor."""
    unfinished = begin(path)
    try:
        told = {}
        for group, named in tensors.items():
            pieces = {name: Piece(value.shape, Box.whole(value.shape), value) for name, value in named.items()}
            told.update(write_pieces(unfinished, {group: pieces}, 0, 1))
        publish(path, step, told, state)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    return load(path)


def begin(path: Path) -> Path:
    """The empty folder in which the checkpoint ``path`` is to be written; leftovers of killed saves go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path.parent)
    for name in (UNFINISHED, REPLACED, REMOVED):
        for leftover in path.parent.glob(f"{name}*"):
            remove(leftover)
    unfinished = unfinished_of(path)
    unfinished.mkdir()
    return unfinished


def unfinished_of(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{path.name}")


def write_pieces(
    folder: Path, groups: Mapping[str, Mapping[str, Piece]], number: int, count: int
) -> dict[str, dict[str, Any]]:
    """Writes rank ``number``'s pieces; returns what is to be told of each file: size, sha256, group, pieces."""
    told = {}
    for group, pieces in groups.items():
        if pieces:
            name = shard_name(group, number, count)
            entry = write_shard(folder / name, pieces)
            told[name] = {**vars(entry), "group": group, "pieces": index.describe(pieces)}
    return told


def publish(path: Path, step: int, told: Mapping[str, Mapping[str, Any]], state: dict[str, Any]) -> None:
    """Makes the unfinished folder of ``path`` the checkpoint, once all its shards are on disk. told: what the ranks
    told of their files."""
    folder = unfinished_of(path)
    groups: dict[str, dict[str, Any]] = {}
    for name, file in told.items():
        groups.setdefault(file["group"], {})[name] = file["pieces"]
    files = {name: {"size": file["size"], "sha256": file["sha256"]} for name, file in told.items()}
    wholes = {group: index.merge(described) for group, described in sorted(groups.items())}
    files[INDEX] = vars(write_json(folder / INDEX, wholes))
    files[STATE] = vars(write_json(folder / STATE, state, indent=1))
    write_json(folder / MANIFEST, {"format": FORMAT, "step": step, "files": dict(sorted(files.items()))}, indent=1)
    sync_folder(folder)
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if os.path.lexists(path):  # the same step, saved again: ``recover`` brings it back after a kill in between
        os.rename(path, replaced)
    os.rename(folder, path)
    sync_folder(path.parent)
    remove(replaced)


def recover(folder: Path) -> None:
    """Brings back what a save was about to replace when it was killed between two renames."""
    for replaced in folder.glob(f"{REPLACED}*"):
        path = folder / replaced.name.removeprefix(REPLACED)
        if not os.path.lexists(path):
            os.rename(replaced, path)


def remove(path: Path) -> None:
    """A folder, or whatever stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read(path: Path) -> Checkpoint:
    """Verifies every file. Raises UserError naming the file that is wrong and the fix."""
    checkpoint = load(path)
    checkpoint.verify()
    return checkpoint


def is_hugging_face(path: Path) -> bool:
    """Whether this looks like a model's folder of transformers."""
    return (path / "config.json").is_file() and next(path.glob("*.safetensors"), None) is not None


def _instead_of_a_checkpoint(path: Path) -> str:
    """What is there, and what to do."""
    if not path.exists():
        return "no such checkpoint; name a folder such as RUN/checkpoints/step_00000100"
    if is_hugging_face(path):
        return "a Hugging Face folder, no checkpoint; `farside import hf` makes one of it (docs/exchange.md)"
    if found := sorted((path / "checkpoints").glob("step_*")):
        return f"a run directory, no checkpoint; name one in it, such as {found[-1]}"
    return f"not a checkpoint (no {MANIFEST}); name a folder such as RUN/checkpoints/step_00000100"


def load(path: Path) -> Checkpoint:
    """Reads the JSON files and checks the list of files and their sizes; shards stay unread. Raises UserError."""
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path}: {_instead_of_a_checkpoint(path)}")
    manifest = read_json(path / MANIFEST)
    step, files = _parse_manifest(path, manifest)
    try:
        present = {file.name for file in path.iterdir()} - {MANIFEST}
        digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise corrupt(path, f"cannot be read ({error})") from error
    for name in sorted(present ^ files.keys()):
        raise corrupt(path / name, "unlisted in the manifest" if name in present else "missing")
    for name, entry in files.items():
        if (path / name).is_symlink() or not (path / name).is_file() or (path / name).stat().st_size != entry.size:
            raise corrupt(path / name, "corrupt (size differs from the manifest)")
    for name in (INDEX, STATE):
        check_file(path / name, files[name])
    state, groups = read_json(path / STATE), read_json(path / INDEX)
    if not isinstance(state, dict):
        raise corrupt(path / STATE, "corrupt (no object)")
    return Checkpoint(path, step, digest, state, files, _parse_index(path, groups, files))


def sizes_are_right(path: Path) -> bool:
    """Whether the files are those of the manifest by name and size; nothing of them is read."""
    try:
        _, files = _parse_manifest(path, read_json(path / MANIFEST))
        present = {file.name: file.stat().st_size for file in path.iterdir() if file.name != MANIFEST}
    except (UserError, OSError):
        return False
    return present == {name: entry.size for name, entry in files.items()}


def _parse_manifest(path: Path, manifest: Any) -> tuple[int, dict[str, Entry]]:
    try:
        version, step = manifest["format"], natural(manifest["step"])
        if type(version) is int and version != FORMAT:
            older = version < FORMAT
            raise UserError(
                f"{path}: checkpoint format {version}, but this farside reads format {FORMAT}; "
                f"{'load it with the farside that wrote it' if older else 'update farside'}"
            )
        if re.fullmatch(r"step_\d+", path.name) and int(path.name[5:]) != step:
            raise ValueError(f"it says step {step}")
        files = {
            name: Entry(natural(entry["size"]), str(entry["sha256"])) for name, entry in dict(manifest["files"]).items()
        }
        strange = [name for name in files if not PLAIN_NAME.fullmatch(name)]
        missing = [name for name in (INDEX, STATE) if name not in files]
        if version != FORMAT or strange or missing:
            raise ValueError(f"no files of a checkpoint: {(strange or missing or [version])[0]!r:.60}")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise corrupt(path / MANIFEST, f"corrupt ({error})") from error
    return step, files


def _parse_index(path: Path, described: Any, files: Mapping[str, Entry]) -> dict[str, dict[str, Whole]]:
    try:
        groups = {str(group): index.parse(entry) for group, entry in dict(described).items()}
        used = {file for wholes in groups.values() for whole in wholes.values() for file, _ in whole.pieces}
        if wrong := used ^ (files.keys() - {INDEX, STATE}):
            raise ValueError(f"{min(wrong)!r:.60} is not both in it and in the manifest")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise corrupt(path / INDEX, f"corrupt ({error})") from error
    return groups
