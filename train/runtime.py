"""What a worker process needs before it can train: its configuration, device, groups, logs and stop signal.

A worker is started by farside's launcher (``--resolved``) or by a bare torchrun with Hydra overrides; in the
second case rank 0 composes the configuration and every rank receives it.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.layout import check_layout
from farside.configs.schema import Config
from farside.parallel import comm
from farside.parallel.mesh import Mesh, ParallelDims
from farside.train.console import outlive_terminal
from farside.train.liveness import Pulse, print_stacks_on_signal, stop_signals
from farside.train.metrics import Descriptions, die_with_parent, hold_directory, write_status

STOP_FILE = "stop"
"""A file of this name in the run directory asks the run to save and end."""


@dataclass(frozen=True)
class Runtime:
    """dir: this phase's run directory; init_from: the checkpoint to start from if the directory holds none."""

    config: Config
    mesh: Mesh
    device: torch.device
    dir: Path
    init_from: Path | None
    stop: "StopRequest"
    pulse: Pulse

    @classmethod
    def alone(cls, config: Config, directory: Path) -> "Runtime":
        """This process by itself, without a launcher, on the CPU: for studies and tests. Signals stay as they are."""
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        mesh = ParallelDims.resolve(config.parallel, 1).build("cpu")
        pulse = Pulse(directory / "logs", 0, config.train.timeout_seconds, config.train.slow_timeout_seconds)
        stop = StopRequest([directory / STOP_FILE], signals=[])
        return cls(config, mesh, torch.device("cpu"), directory, None, stop, pulse)

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return comm.rank(self.mesh.world) == 0


class StopRequest:
    """Asked for by SIGTERM, SIGINT, SIGHUP or the stop file; agreed on by all ranks at a step's boundary.

    A second signal changes nothing here: batch systems send one to every process, and torchrun passes its own on.
    """

    def __init__(self, files: list[Path], signals: Sequence[signal.Signals] | None = None) -> None:
        """signals: to listen to; None: those of ``stop_signals``."""
        self.files, self.signalled = list(files), False
        for number in stop_signals() if signals is None else signals:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signalled = True

    @property
    def requested(self) -> bool:
        """This rank's view: pass it through ``agreed`` before acting on it."""
        return self.signalled or any(file.exists() for file in self.files)

    def agreed(self, mesh: Mesh, device: torch.device) -> bool:
        """Whether any rank was asked. Collective."""
        return comm.sum_floats([float(self.requested)], mesh.world, device)[0] > 0


class Stopped(Exception):
    """The run was asked to stop, has saved what it must, and ends well."""


def worker_main(
    entry: Callable[[Runtime], int | None],
    folder: str = "",
    check: Callable[[Config], object] = check_layout,
    evaluates: bool = False,
) -> None:
    """Runs ``entry`` as this process's whole job and turns its end into an exit code: 0 done or stopped, 2 wrong
    input, 1 anything else. The cause is left in logs/error_rank_N.json for the launcher.

    entry: may return the exit code of a check that came to its end; a launcher, who sees the job finished, reads the
    verdict from the directory. folder: inside the run directory, for a job that is no training run. check: raises
    UserError for a configuration that cannot run; asked before any process group exists. evaluates: a run that is in
    the directory stays described as it was.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolved", type=Path)
    parser.add_argument("--config-dir")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--init-from", type=Path)
    parser.add_argument("--stop-file", type=Path, action="append", default=[])
    parser.add_argument("--launcher", type=int)
    arguments, overrides = parser.parse_known_args()
    rank = int(os.environ.get("RANK", "0"))
    die_with_parent(arguments.launcher)
    print_stacks_on_signal()
    stop = StopRequest(arguments.stop_file)
    terminal = os.dup(2)
    directory: Path | None = arguments.dir
    held = contextlib.ExitStack()
    before: Descriptions | None = None
    code, answer = 0, None
    try:
        config, mesh, device = _start(arguments.resolved, overrides, check, arguments.config_dir)
        if arguments.launcher is None:  # else the launcher holds the directory
            _on_rank_0(lambda: _take(Path(config.run.dir) / folder, held))
        directory = arguments.dir or Path(config.run.dir) / folder
        init_from = arguments.init_from or (Path(config.train.init_from) if config.train.init_from else None)
        if arguments.launcher is None and rank == 0:
            before = Descriptions(directory)
        _prepare_directory(directory, config, rank)
        pulse = Pulse(directory / "logs", rank, config.train.timeout_seconds, config.train.slow_timeout_seconds)
        if arguments.launcher is None and os.environ.get("LOCAL_RANK", "0") == "0":
            _start_watch(directory, config, terminal)
        stop.files.append(directory / STOP_FILE)
        if rank == 0:
            write_status(directory, "running")
        answer = entry(Runtime(config, mesh, device, directory, init_from, stop, pulse))
        pulse.beat("end")
        if rank == 0:
            write_status(directory, "finished")
    except Stopped as stopped:
        pulse.beat("end")  # else the watch takes its end for a death
        if rank == 0 and directory:
            write_status(directory, "stopped", cause=str(stopped))
    except Exception as error:
        code = 2 if isinstance(error, UserError) else 1
        line = _report_failure(directory, rank, error, code)
        if code == 2 and before is not None:
            before.restore()
        alone = code == 2 and not dist.is_initialized() and rank > 0 and not _cut_short(stop)
        if arguments.launcher is None and (rank == 0 or code == 1 or alone):
            os.write(terminal, f"error: {line}\n".encode())
    if evaluates and before is not None and before.of_a_run:
        before.restore()
    if code == 0 and dist.is_initialized():
        dist.barrier()  # nobody leaves while a peer still reads from it
    if code == 0 and arguments.launcher is None:
        code = answer or 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's teardown. A failing rank must die at once, as its peers wait in a collective until it
    # does; and gloo's threads, still alive then, now and again abort a process that had ended well.
    os._exit(code)


def _start(
    resolved: Path | None,
    overrides: list[str],
    check: Callable[[Config], object],
    config_dir: str | None = None,
) -> tuple[Config, Mesh, torch.device]:
    """Every rank composes for itself and finds what is wrong before a group exists; rank 0's composition counts."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = compose.load(resolved) if resolved else compose.compose(overrides, config_dir)
    check(config)
    ParallelDims.resolve(config.parallel, world_size)
    device = _own_device(int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    if world_size > 1:
        # the watch is there before it and names the culprit; this is for a job whose watch was killed
        timeout = datetime.timedelta(seconds=config.train.slow_timeout_seconds + 60)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    if resolved is None:
        config = compose.from_yaml(_on_rank_0(lambda: compose.to_yaml(config)))
    torch.set_num_threads(config.launch.threads_per_rank)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return config, ParallelDims.resolve(config.parallel, world_size).build(device.type), device


def _own_device(local_rank: int, local_ranks: int) -> torch.device:
    """A GPU for each rank of this machine; the CPU where there is none. Raises UserError for too few."""
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return torch.device("cpu")
    if gpus < local_ranks:
        raise UserError(
            f"parallel: {local_ranks} ranks on this machine, which has {gpus} GPU{'s' * (gpus > 1)}: lower degrees to "
            f"{gpus} rank{'s' * (gpus > 1)}, or set CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _cut_short(stop: StopRequest, seconds: float = 10.0) -> bool:
    """Leaves the last word on wrong input to rank 0, whose end makes torchrun stop this rank: were this rank the first
    to end, rank 0 might be killed before it has spoken. False: nobody came, so rank 0 sees nothing wrong."""
    until = time.monotonic() + seconds
    while not stop.signalled and time.monotonic() < until:
        time.sleep(0.02)
    return stop.signalled


def _start_watch(directory: Path, config: Config, terminal: int) -> None:
    """There is no launcher: a process of its own looks after the ranks of this machine, and ends with them."""
    times = (config.train.timeout_seconds, config.train.slow_timeout_seconds)
    what = [str(directory), os.environ.get("WORLD_SIZE", "1"), *map(str, times)]
    subprocess.Popen(
        [sys.executable, "-m", "farside.train.watch", *what],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        start_new_session=True,
    )


def _on_rank_0(function: Callable[[], Any]) -> Any:
    """Its value on every rank; so is its UserError."""
    group = dist.group.WORLD if dist.is_initialized() else None
    result: Any = None
    if comm.rank(group) == 0:
        try:
            result = function()
        except UserError as error:
            result = error
    result = comm.broadcast_object(result, group)
    if isinstance(result, UserError):
        raise result
    return result


def _take(directory: Path, held: contextlib.ExitStack) -> None:
    held.enter_context(hold_directory(directory))
    (directory / STOP_FILE).unlink(missing_ok=True)
    for stale in (directory / "logs").glob("heartbeat_rank_*"):  # of an earlier job: its ranks are dead by right
        stale.unlink()


def _prepare_directory(directory: Path, config: Config, rank: int) -> None:
    """Folders and logs: stderr, and of ranks above 0 stdout too, goes to logs/rank_N.log."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    log = (directory / "logs" / f"rank_{rank}.log").open("a", buffering=1)
    (directory / "logs" / f"error_rank_{rank}.json").unlink(missing_ok=True)
    os.dup2(log.fileno(), 2)
    outlive_terminal()
    if rank > 0:
        os.dup2(log.fileno(), 1)
    else:
        (directory / "config.yaml").write_text(compose.to_yaml(config))
        (directory / "config.json").write_text(compose.to_json(config))
        (directory / "machine.json").write_text(json.dumps(describe_machine()))


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory and versions, for reports."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _report_failure(directory: Path | None, rank: int, error: Exception, code: int) -> str:
    """Traceback to the log, the cause to error_rank_N.json and status.json; returns the cause as one line."""
    text = str(error) if code == 2 else f"{type(error).__name__}: {error}"
    line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if directory is None or not (directory / "logs").is_dir():
        if code != 2:
            traceback.print_exc()
        return line
    with contextlib.suppress(OSError):  # a full disk must not hide the cause
        traceback.print_exc()
        record = {"rank": rank, "cause": line, "code": code}
        (directory / "logs" / f"error_rank_{rank}.json").write_text(json.dumps(record))
        if rank == 0 or code == 1:
            write_status(directory, "failed", cause=f"rank {rank}: {line}")
    return line
