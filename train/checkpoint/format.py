"""One checkpoint: a folder of safetensors and JSON that is complete or invisible. No pickle.

Written beside its place, every file fsynced, the manifest (sizes and SHA-256 of all files) last, then
renamed. Its hash is the SHA-256 of the manifest, so a parent's hash pins every byte of the parent.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from farside.configs.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk. state: what was given to ``write``; hash: SHA-256 of the manifest."""

    path: Path
    step: int
    hash: str
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of <name>.safetensors, on the CPU."""
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read ({error}); {_REMEDY}") from error


_REMEDY = "remove this checkpoint's folder to go on from an older one"


def write(path: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Checkpoint:
    """Writes the checkpoint and makes it visible at once. tensors: file stem -> name -> tensor."""
    unfinished = path.with_name(f".writing-{path.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        manifest = _write_files(unfinished, step, tensors, state)
        if path.exists():  # an invalid leftover of the same step: a valid one would have been resumed from
            shutil.rmtree(path)
        os.rename(unfinished, path)
    except (SafetensorError, OSError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    _sync_folder(path.parent)
    return Checkpoint(path, step, hashlib.sha256(manifest).hexdigest(), state)


def _write_files(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> bytes:
    """Everything of a checkpoint, on disk for good; returns the manifest."""
    folder.mkdir(parents=True)
    for stem, named in tensors.items():
        save_file(
            {name: value.contiguous().cpu() for name, value in named.items()},
            folder / f"{stem}.safetensors",
        )
    (folder / "state.json").write_text(json.dumps(state, indent=1))
    files = {
        file.name: {"size": file.stat().st_size, "sha256": _sync_and_hash(file)} for file in sorted(folder.iterdir())
    }
    manifest = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1).encode()
    (folder / MANIFEST).write_bytes(manifest)
    _sync_and_hash(folder / MANIFEST)
    _sync_folder(folder)
    return manifest


def read(path: Path) -> Checkpoint:
    """Verifies every file against the manifest. Raises UserError naming the file that is wrong and the fix."""
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path}: not a checkpoint (no {MANIFEST}); name a folder such as checkpoints/step_00000100")
    raw = (path / MANIFEST).read_bytes()
    try:
        manifest = json.loads(raw)
        version, step, files = manifest["format"], int(manifest["step"]), dict(manifest["files"])
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
        if re.fullmatch(r"step_\d+", path.name) and int(path.name[5:]) != step:
            raise ValueError(f"it says step {step}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST}: corrupt ({error}); {_REMEDY}") from error
    if version != FORMAT:
        raise UserError(f"{path}: checkpoint format {version}, but this farside reads format {FORMAT}")
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    for name in sorted(present ^ expected.keys()):
        raise UserError(f"{path / name}: {'unlisted in the manifest' if name in present else 'missing'}; {_REMEDY}")
    for name, (size, digest) in expected.items():
        file = path / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size != size or _hash(file) != digest:
            raise UserError(f"{file}: corrupt (size or SHA-256 differs from the manifest); {_REMEDY}")
    state = json.loads((path / "state.json").read_text())
    return Checkpoint(path, step, hashlib.sha256(raw).hexdigest(), state)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_and_hash(file: Path) -> str:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
