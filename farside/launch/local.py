"""Workers on this machine: torchrun in a session of its own, one run directory, one job in it at a time."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.train.console import outlive_terminal
from farside.train.liveness import stop_signals
from farside.train.metrics import (
    Descriptions,
    die_with_parent,
    hold_directory,
    start_mirror,
    stop_mirror,
    write_json,
    write_status,
)
from farside.train.watch import REPORT, Watch

STOP_FILE = "stop"
PATIENT, IMPATIENT = 20.0, 2.0
"""Seconds that W&B gets at a phase's end; and once it has not answered, so that a job does not wait every time."""


class JobFailed(Exception):
    """Workers failed; the text is one line with rank and cause. code: 2 for wrong input, else 1."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Launcher:
    """Starts workers and passes stop requests on: the first Ctrl-C, SIGTERM or SIGHUP saves, the second
    kills."""

    directory: Path
    before: Descriptions
    process: subprocess.Popen[bytes] | None = None
    signals: list[int] = field(default_factory=list)
    patience: float = PATIENT

    def on_signal(self, number: int, frame: object) -> None:
        if self.signals and number == signal.SIGHUP:  # the shell sends one, and the kernel another when the shell ends
            return
        self.signals.append(number)
        (self.directory / STOP_FILE).touch()
        if len(self.signals) == 1:
            with contextlib.suppress(OSError):  # the terminal may be what went away
                os.write(2, b"\nstopping: saving first (again to kill)\n")  # print may be what we interrupt
        elif self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            raise KeyboardInterrupt

    @property
    def stopping(self) -> bool:
        return bool(self.signals) or (self.directory / STOP_FILE).exists()

    def run_workers(self, module: str, config: Config, directory: Path, init_from: Path | None = None) -> str:
        """Runs a worker module to its end in ``directory``; returns "finished" or "stopped".

        Raises JobFailed with the rank and cause; wrong input leaves a directory that held a run as it was.
        """
        if directory == self.directory:  # held by this process already
            return self._run_workers(module, config, directory, init_from)
        with hold_directory(directory):  # a phase of a whole job: nobody must start one in there by itself
            return self._run_workers(module, config, directory, init_from)

    def _run_workers(self, module: str, config: Config, directory: Path, init_from: Path | None) -> str:
        logs = directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for stale in (*logs.glob("error_rank_*.json"), *logs.glob("heartbeat_rank_*"), logs / REPORT):
            stale.unlink(missing_ok=True)
        if directory != self.directory:
            (directory / STOP_FILE).unlink(missing_ok=True)
        write_json(directory / "status.json", {**read_status(directory), "status": "running", "cause": None})
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
        command += ["--stop-file", str(self.directory / STOP_FILE), "--launcher", str(os.getpid())]
        command += ["--init-from", str(init_from)] if init_from else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.launch.threads_per_rank)}
        if sys.platform == "linux":  # these ranks are all on this machine: nobody else need reach them
            environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **environment}
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
                command, stderr=log, env=environment, start_new_session=True, preexec_fn=die_with_parent
            )
            times = (config.train.timeout_seconds, config.train.slow_timeout_seconds)
            code, hang = self._watch(self.process, Watch(logs, config.parallel.ranks, *times))
            self.process = None
        warning = stop_mirror(mirror, directory, self.patience)
        if warning:
            self.patience = IMPATIENT
            print(f"warning: {warning}", file=sys.stderr)
        outcome = str(read_status(directory).get("status"))
        # torchrun itself fails when a signal reaches it, though its workers saved and ended well
        if outcome == "stopped" or (code == 0 and outcome == "finished"):
            return outcome
        if len(self.signals) > 1:
            raise JobFailed(f"{directory}: killed on request; the last checkpoint is whole", 1)
        said = (logs / "launcher.log").read_text(errors="replace")[offset:]
        failed = JobFailed(f"{directory}: {hang}", 1) if hang else _failure(directory, command, code, said)
        with contextlib.suppress(OSError):  # a full disk: the cause is told all the same
            write_status(directory, "failed", cause=str(failed))
        if failed.code == 2 and directory == self.directory:
            self.before.restore()
        raise failed

    def _watch(self, process: subprocess.Popen[bytes], watch: Watch) -> tuple[int, str | None]:
        """Until the workers end, or stand still; then none is left. Returns the exit code and the culprit, if any."""
        while True:
            try:
                return process.wait(watch.interval), None
            except subprocess.TimeoutExpired:
                hang = watch.hang()
            if hang is not None:
                os.killpg(process.pid, signal.SIGKILL)  # the kernel ends the ranks with it
                watch.kill()
                return process.wait(), hang


def _python(config: Config) -> list[str]:
    ranks = config.parallel.ranks
    if ranks == 1:
        return [sys.executable]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "--max-restarts=0",
        f"--shutdown-timeout={config.train.slow_timeout_seconds}",  # 30 s else, however long a step and its save take
    ]


def _root() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def _failure(directory: Path, process: list[str], code: int, log: str) -> JobFailed:
    records = [json.loads(path.read_text()) for path in sorted((directory / "logs").glob("error_rank_*.json"))]
    wrong_input = [record for record in records if record["code"] == 2]
    if wrong_input:
        return JobFailed(wrong_input[0]["cause"], 2)
    # a rank that died by a signal left no record: torchrun's table names it, and its peers' errors are only echoes
    killed = re.findall(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*-(\d+)", log)
    if code < 0 and "torch.distributed.run" not in process:
        killed = [("0", str(-code))]
    if killed:
        rank, number = killed[0]
        name = signal.Signals(int(number)).name
        return JobFailed(f"{directory}: rank {rank} was killed by {name}; the same command resumes", 1)
    if records:
        first = min(
            records,
            key=lambda record: (directory / "logs" / f"error_rank_{record['rank']}.json").stat().st_mtime,
        )
        log_file = directory / "logs" / f"rank_{first['rank']}.log"
        return JobFailed(f"{directory}: rank {first['rank']}: {first['cause']} (see {log_file})", 1)
    if shutil.disk_usage(directory).free < 1 << 20:  # nor could a record of the cause be written
        return JobFailed(f"{directory}: No space left on device; free some, then the same command resumes", 1)
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return JobFailed(f"{directory}: workers ended with {reason} (see {directory / 'logs' / 'launcher.log'})", 1)


def read_status(directory: Path) -> dict[str, object]:
    """What status.json says; nothing if it is not there or damaged: the next one to write it replaces it."""
    try:
        return dict(json.loads((directory / "status.json").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {}


@contextlib.contextmanager
def launching(directory: Path, command_line: str) -> Iterator[Launcher]:
    """Holds the run directory's lock and the signal handlers. Raises UserError if another job holds it."""
    with hold_directory(directory):
        (directory / STOP_FILE).unlink(missing_ok=True)
        launcher = Launcher(directory, Descriptions(directory))
        (directory / "command.txt").write_text(command_line + "\n")
        outlive_terminal()
        previous = {number: signal.signal(number, launcher.on_signal) for number in stop_signals()}
        try:
            yield launcher
        except UserError:
            launcher.before.restore()
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
