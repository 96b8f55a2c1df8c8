"""Which checkpoints a run directory holds, which of them stay, and whether the disk has room for the next."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from farside.configs.schema import Best, CheckpointConfig
from farside.train.checkpoint.files import REMEDY, CorruptCheckpoint, read_json
from farside.train.checkpoint.format import MANIFEST, REMOVED, STATE, remove, sizes_are_right

STEP_NAME = re.compile(r"step_([0-9]{8,18})")
CORRUPT = "corrupt_"
METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 16


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def complete(run_dir: Path) -> list[Path]:
    """Complete checkpoint folders, unverified, oldest first. Leftovers of a killed save, foreign names, links and
    files in a folder's place are invisible."""
    found = []
    for path in (run_dir / "checkpoints").glob("step_*"):
        match = STEP_NAME.fullmatch(path.name)
        if match and path.name == folder_name(int(match[1])) and not path.is_symlink() and (path / MANIFEST).is_file():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def newest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint folder, unverified; None if there is none."""
    return next(reversed(complete(run_dir)), None)


def fields_of_step(run_dir: Path, step: int) -> dict[str, float]:
    """The finite numbers of that step in metrics.jsonl, whose last line it is; none if it is not there."""
    if not (run_dir / METRICS).is_file():
        return {}
    with (run_dir / METRICS).open("rb") as stream:
        stream.seek(-min(stream.seek(0, os.SEEK_END), LONGEST_LINE), os.SEEK_END)
        lines = stream.read().splitlines()
    record = json.loads(lines[-1]) if lines else {}
    numbers = record.items() if record.get("step") == step else ()
    return {name: float(value) for name, value in numbers if isinstance(value, int | float) and math.isfinite(value)}


def best(paths: list[Path], settings: CheckpointConfig) -> set[Path]:
    """Of the checkpoints that know the metric, the best; of equal ones the newest. Empty if none does."""
    if settings.keep_best is None:
        return set()
    sign = 1.0 if settings.best is Best.highest else -1.0
    known = {path: metrics.get(settings.keep_best) for path in paths if isinstance(metrics := _metrics(path), dict)}
    scored = [(sign * value, path.name, path) for path, value in known.items() if isinstance(value, int | float)]
    return {max(scored)[2]} if scored else set()


def _metrics(path: Path) -> Any:
    try:
        state = read_json(path / STATE)
    except CorruptCheckpoint:
        return None
    return state.get("metrics") if isinstance(state, dict) else None


def surplus(run_dir: Path, settings: CheckpointConfig) -> list[Path]:
    """What may go, oldest first: neither among the newest ``keep`` that are whole, nor kept for good, nor the best.

    A folder whose files have other sizes than its manifest says counts for nothing: it must not push out a good one.
    The newest whole one always stays, and so does what is newer than it.
    """
    paths = complete(run_dir)
    whole = [path for path in paths if sizes_are_right(path)]
    if not whole:
        return []
    stay = {*whole[-settings.keep :], *best(whole, settings)}
    if settings.keep_every:
        stay |= {path for path in whole if int(path.name[5:]) % settings.keep_every == 0}
    return [path for path in paths if path not in stay and path.name < whole[-1].name]


def prune(run_dir: Path, settings: CheckpointConfig) -> None:
    """Removes what is surplus; each is invisible at once, so that a kill leaves no half of one."""
    for path in surplus(run_dir, settings):
        hidden = path.with_name(f"{REMOVED}{path.name}")
        os.rename(path, hidden)
        remove(hidden)


def lack_of_room(run_dir: Path, settings: CheckpointConfig, size: int) -> str | None:
    """Why the disk cannot hold one checkpoint of ``size`` bytes more than are kept, as one line; None if it can."""
    kept = settings.keep + (settings.keep_best is not None)
    present = sum(file.stat().st_size for path in complete(run_dir) for file in path.iterdir())
    needed, free = max(size, (kept + 1) * size - present), shutil.disk_usage(run_dir).free
    if needed <= free:
        return None
    return (
        f"run.dir {run_dir}: checkpoints need {needed:,} bytes more ({kept + 1} of {size:,}), but {free:,} are free; "
        "free some, lower checkpoint.keep or name another run.dir"
    )


def require_room(folder: Path, size: int) -> None:
    """Raises OSError unless the disk has room for one checkpoint of ``size`` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free, found = shutil.disk_usage(folder).free, os.statvfs(folder)
    if free < size:
        raise OSError(f"No space left on device: it needs {size:,} bytes, {free:,} are free")
    if found.f_files and not found.f_favail:
        raise OSError("No space left on device: no inodes are free")


def set_aside(path: Path, error: CorruptCheckpoint) -> str:
    """Makes a corrupt checkpoint invisible, but keeps it to be looked at; returns what was wrong with it."""
    aside = path.with_name(f"{CORRUPT}{path.name}")
    remove(aside)
    os.rename(path, aside)
    return f"{str(error).removesuffix(f'; {REMEDY}')}; set aside as {aside.name}"
