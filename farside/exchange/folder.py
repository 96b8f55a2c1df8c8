"""A folder that appears at once and whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from farside.configs.errors import UserError


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """``fill`` writes into a folder beside ``out``, which is then renamed. Raises UserError if ``out`` is there already
    or cannot be written."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already and is left as it is; name another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".writing-{out.name}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    try:
        unfinished.chmod(0o755)  # others may read what mkdtemp keeps to its owner
        fill(unfinished)
        os.rename(unfinished, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({' '.join(str(error).split())})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
