"""Real filesystems for tests: a small one that fills up, and one that cannot be written."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT_MODE = 0o755


@contextlib.contextmanager
def small_disk(path: Path, mebibytes: int, inodes: int = 0) -> Iterator[bool]:
    """A tmpfs of that size on ``path`` (inodes: 0 for enough); yields whether there is one: only root may mount, and
    not everywhere."""
    path.mkdir()
    options = f"size={mebibytes}m" + (f",nr_inodes={inodes}" if inodes else "")
    mounted = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Nothing in ``path`` can be written meanwhile: by a mount for root, who may ignore modes, else by its mode."""
    if os.geteuid() != 0:
        path.chmod(0o555)
        try:
            yield
        finally:
            path.chmod(ROOT_MODE)
        return
    bound = _mount("--bind", str(path), str(path)) and _mount("-o", "remount,ro,bind", str(path))
    if not bound:
        raise RuntimeError("root, but not allowed to mount: run these tests as another user")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _mount(*arguments: str) -> bool:
    command = shutil.which("mount")
    return bool(command) and os.geteuid() == 0 and not subprocess.run([str(command), *arguments]).returncode
