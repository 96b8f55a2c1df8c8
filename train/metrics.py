"""metrics.jsonl is the truth; W&B is its mirror, with samples as tables. Light: launcher and workers share what a run
directory needs.

The mirror is a process of its own that follows the file, so that a slow, absent or broken W&B can neither
block nor end a run: ``python -m farside.train.metrics RUN_DIR PROJECT NAME MODE``.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from farside.configs.errors import UserError

FINISHED = "wandb_stop"
"""File that tells the mirror to drain and end."""
TABLES = ("samples", "held_out")
"""Files of text beside metrics.jsonl, <name>.jsonl, that W&B shows as tables."""
LOCK = "lock"
"""Held by the job that uses the run directory; names it."""


class MetricsWriter:
    """Appends one JSON object a step. On a resume, lines after ``step`` are dropped: they will come again."""

    def __init__(self, path: Path, step: int, name: str = "metrics.jsonl") -> None:
        self.path = path / name
        self._keep(step)

    def _keep(self, step: int) -> None:
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(unfinished, self.path)
        self.stream = self.path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """What is no finite number becomes null: JSON has no NaN."""
        wrong = {key: None for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
        self.stream.write(json.dumps({**record, **wrong}) + "\n")
        self.stream.flush()

    def rewind(self, step: int) -> None:
        """Drops the lines after ``step``."""
        self.stream.close()
        self._keep(step)

    def close(self) -> None:
        self.stream.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line torn by a kill is the last and is left out."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is no JSON object; remove the file or that line") from error
    return found


def write_json(path: Path, value: Any) -> None:
    """Replaces the file at once: a reader sees the old or the new one."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(value, indent=1))
    os.replace(unfinished, path)


def write_status(directory: Path, status: str, **more: object) -> None:
    """status.json, replaced at once. A later call keeps what an earlier one said of the step."""
    path = directory / "status.json"
    kept = {}
    if path.is_file():
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # a broken one is replaced
            old = dict(json.loads(path.read_text()))
            kept = {key: old[key] for key in ("step", "steps") if key in old}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"status": status, "cause": None, **kept, **more}))
    os.replace(unfinished, path)


DESCRIPTIONS = ("command.txt", "config.yaml", "config.json", "data.json", "machine.json", "status.json")
"""Files that say what a run directory holds."""


class Descriptions:
    """A run directory's description as it was: a job that is refused must not be described in the place of the one
    that is there. of_a_run: whether that one trains, or is a whole job."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.earlier = (directory / "config.yaml").is_file()
        self.of_a_run = (directory / "checkpoints").is_dir() or (directory / "phases.json").is_file()
        paths = {name: directory / name for name in DESCRIPTIONS}
        self.contents = {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}

    def restore(self) -> None:
        """Puts it back; does nothing if the directory held no run."""
        if not self.earlier:
            return
        for name, content in self.contents.items():
            path = self.directory / name
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != content:
                unfinished = path.with_suffix(".tmp")
                unfinished.write_bytes(content)
                os.replace(unfinished, path)


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks says, such as Lustre mounted without flock."""


def hold_directory(directory: Path) -> TextIO:
    """Takes the run directory for this process; closing the result (or dying) gives it back.

    Raises UserError naming the holder if another job has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"run.dir {directory}: cannot be written ({error.strerror}); name another") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise UserError(f"run.dir {directory}: in use by {holder}; wait for it or name another run.dir") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warning = f"warning: run.dir {directory}: its file system has no locks, so nobody sees two jobs in it"
        print(warning, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
    return lock


def is_held(directory: Path) -> bool:
    """Whether a live process holds the directory."""
    if not (directory / LOCK).is_file():
        return False
    with (directory / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return True  # nobody can tell; its status stands
    return False


def die_with_parent(ancestor: int | None = None) -> None:
    """Linux: the kernel kills this process when its parent ends, so that a killed launcher leaves no orphans.

    ancestor: a process that this one descends from; if it or one in between died before the kernel was told,
    this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if ancestor is not None and not _descends_from(ancestor):
            os._exit(1)


def _descends_from(ancestor: int) -> bool:
    process = os.getppid()
    while process not in (0, ancestor):
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            return False
    return process == ancestor


def start_mirror(run_dir: Path, project: str, name: str, mode: str) -> subprocess.Popen[bytes] | None:
    """Starts the W&B mirror unless mode is "off"."""
    if mode == "off":
        return None
    (run_dir / FINISHED).unlink(missing_ok=True)
    with (run_dir / "logs" / "wandb.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "farside.train.metrics", str(run_dir), project, name, mode, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def stop_mirror(mirror: subprocess.Popen[bytes] | None, run_dir: Path, seconds: float) -> str | None:
    """Lets the mirror drain for at most ``seconds``; returns a warning if it did not end well."""
    if mirror is None:
        return None
    (run_dir / FINISHED).touch()
    try:
        code = mirror.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(mirror.pid, signal.SIGKILL)  # W&B's own service with it
        mirror.wait()
        return f"W&B did not answer within {seconds:.0f} s; the run is whole in metrics.jsonl (see logs/wandb.log)"
    return f"W&B failed; the run is whole in metrics.jsonl (see logs/wandb.log, exit code {code})" if code else None


class Follower:
    """Reads a growing file of JSON lines; one that was cut, by a resume, is read from its beginning again."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Complete lines that were not read yet."""
        if not self.path.is_file():
            return
        with self.path.open() as stream:
            if self.position > os.fstat(stream.fileno()).st_size:
                self.position = 0
            stream.seek(self.position)
            while (line := stream.readline()).endswith("\n"):
                self.position = stream.tell()
                yield json.loads(line)


class Table:
    """Samples of a run, for the step that they belong to. A step's are on disk before its line of metrics is."""

    def __init__(self, follower: Follower) -> None:
        self.follower, self.shown = follower, -1
        self.waiting: list[dict[str, Any]] = []

    def take(self, step: int) -> list[dict[str, Any]]:
        """What came since the last call, up to ``step``; a step that a resume repeats is not shown again."""
        self.waiting += self.follower.new()
        rows = [row for row in self.waiting if self.shown < row["step"] <= step]
        self.waiting = [row for row in self.waiting if row["step"] > step]
        self.shown = max(self.shown, step)
        return rows


def columns_of(rows: list[dict[str, Any]]) -> tuple[list[str | int], list[list[Any]]]:
    """Every key in the order of its first appearance, and the rows' values; None where a row lacks one."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [*columns], [[row.get(column) for column in columns] for row in rows]


def _mirror(run_dir: Path, project: str, name: str, mode: str) -> None:
    import wandb

    identity = run_dir / "wandb_id"
    if not identity.is_file():
        identity.write_text(secrets.token_hex(8))
    run = wandb.init(
        project=project,
        name=name,
        id=identity.read_text(),
        mode="online" if mode == "online" else "offline",
        resume="allow",
        dir=str(run_dir),
        config=json.loads((run_dir / "config.json").read_text()),
    )
    metrics, logged = Follower(run_dir / "metrics.jsonl"), -1
    tables = {name: Table(Follower(run_dir / f"{name}.jsonl")) for name in TABLES}
    while True:
        ending = (run_dir / FINISHED).exists()
        for record in metrics.new():
            if record["step"] > logged:
                logged = record["step"]
                rows = {name: found for name, table in tables.items() if (found := table.take(logged))}
                shown = {name: wandb.Table(*columns_of(found), allow_mixed_types=True) for name, found in rows.items()}
                run.log({**record, **shown}, step=logged)
        if ending:
            break
        time.sleep(1.0)
    run.finish()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[5]))
    _mirror(Path(sys.argv[1]), *sys.argv[2:5])
