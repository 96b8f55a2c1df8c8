"""Workers on this machine: torchrun in a session of its own, one run directory, one job in it at a time."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.train.metrics import start_mirror, stop_mirror

STOP_FILE = "stop"


class JobFailed(Exception):
    """Workers failed; the text is one line with rank and cause. code: 2 for wrong input, else 1."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Launcher:
    """Starts workers and passes stop requests on: the first Ctrl-C or SIGTERM saves, the second kills."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    signals: list[int] = field(default_factory=list)

    def on_signal(self, number: int, frame: object) -> None:
        self.signals.append(number)
        (self.directory / STOP_FILE).touch()
        if len(self.signals) == 1:
            print("\nstopping: saving a checkpoint first (again to kill)", file=sys.stderr, flush=True)
        elif self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def stopping(self) -> bool:
        return bool(self.signals) or (self.directory / STOP_FILE).exists()

    def run_workers(self, module: str, config: Config, directory: Path, init_from: Path | None = None) -> str:
        """Runs a worker module to its end in ``directory``; returns "finished" or "stopped".

        Raises JobFailed with the rank and cause.
        """
        logs = directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for stale in logs.glob("error_rank_*.json"):
            stale.unlink()
        (directory / "config.yaml").write_text(compose.to_yaml(config))
        (directory / "config.json").write_text(compose.to_json(config))
        command = [
            *_python(config),
            "-m",
            module,
            "--resolved",
            str(directory / "config.yaml"),
            "--dir",
            str(directory),
        ]
        command += ["--stop-file", str(self.directory / STOP_FILE)]
        command += ["--init-from", str(init_from)] if init_from else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.launch.threads_per_rank)}
        environment["PYTHONPATH"] = os.pathsep.join([str(_root()), *filter(None, [os.environ.get("PYTHONPATH")])])
        mirror = start_mirror(
            directory,
            config.logging.project,
            f"{config.run.name}/{directory.name}",
            config.logging.wandb.value,
        )
        with (logs / "launcher.log").open("ab") as log:
            offset = log.tell()
            self.process = subprocess.Popen(
                command, stderr=log, env=environment, start_new_session=True, preexec_fn=_die_with_parent
            )
            code = self.process.wait()
            self.process = None
        warning = stop_mirror(mirror, directory)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        status = read_status(directory)
        if code == 0 and status.get("status") in ("finished", "stopped"):
            return str(status["status"])
        if len(self.signals) > 1:
            raise JobFailed(f"{directory}: killed on request; the last checkpoint is whole", 1)
        raise _failure(directory, code, (logs / "launcher.log").read_text(errors="replace")[offset:])


def _python(config: Config) -> list[str]:
    ranks = config.parallel.dp_replicate * config.parallel.dp_shard
    if ranks == 1:
        return [sys.executable]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "--max-restarts=0",
    ]


def _root() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def _die_with_parent() -> None:
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: workers in turn die with torchrun


def _failure(directory: Path, code: int, log: str) -> JobFailed:
    records = [json.loads(path.read_text()) for path in sorted((directory / "logs").glob("error_rank_*.json"))]
    wrong_input = [record for record in records if record["code"] == 2]
    if wrong_input:
        return JobFailed(wrong_input[0]["cause"], 2)
    # a rank that died by a signal left no record: torchrun's table names it, and its peers' errors are only echoes
    root_cause = log.rpartition("Root Cause")[2]
    killed = re.findall(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*-(\d+)", root_cause)
    if killed:
        rank, number = killed[0]
        return JobFailed(
            f"{directory}: rank {rank} was killed by {signal.Signals(int(number)).name}; the same command resumes",
            1,
        )
    if records:
        first = min(
            records,
            key=lambda record: (directory / "logs" / f"error_rank_{record['rank']}.json").stat().st_mtime,
        )
        log_file = directory / "logs" / f"rank_{first['rank']}.log"
        return JobFailed(f"{directory}: rank {first['rank']}: {first['cause']} (see {log_file})", 1)
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return JobFailed(f"{directory}: workers ended with {reason} (see {directory / 'logs' / 'launcher.log'})", 1)


def read_status(directory: Path) -> dict[str, object]:
    path = directory / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@contextlib.contextmanager
def launching(directory: Path, command_line: str) -> Iterator[Launcher]:
    """Holds the run directory's lock and the signal handlers. Raises UserError if another job holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a+")
    except OSError as error:
        raise UserError(f"run.dir {directory}: cannot be written ({error.strerror}); name another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"run.dir {directory}: in use by {lock.read().strip()}; wait for it or name another run.dir"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        (directory / STOP_FILE).unlink(missing_ok=True)
        (directory / "command.txt").write_text(command_line + "\n")
        launcher = Launcher(directory)
        previous = {number: signal.signal(number, launcher.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield launcher
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
