"""Signs of life: every rank leaves a few bytes that say where it stands, and prints its stacks when signalled.

The bytes go to logs/heartbeat_rank_N with one write and no sync (six microseconds, five times a step); ``watch``
reads them from outside, so that a rank which is stopped, or holds Python's lock in a loop of C, is seen all the same.
"""

import faulthandler
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from farside.train import proc

ORDER = {
    **{"start": 0, "prepare": 1, "verify": 1, "init": 2, "rollout": 3, "score": 4, "data": 5},
    **{"forward": 6, "backward": 6, "step": 7, "eval": 8, "save": 9, "end": 10},
}
"""Phases, and which comes before which within a step. Forward and backward take turns: pipelines run both at once."""
QUICK = {"data", "forward", "backward", "step"}
"""What ``train.timeout_seconds`` is for; the others may take ``train.slow_timeout_seconds``."""
ENDLESS = {"prepare", "verify", "end"}
"""What takes as long as it takes."""
STACKS = signal.SIGUSR1
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
_RECORD = struct.Struct("<qqQqqd16s32s")


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank stands. allowed: seconds until its next beat at most; started: of the process, to tell it from a
    later one of the same number; thread: its main thread, as stacks name it."""

    pid: int
    started: int
    thread: int
    beats: int
    step: int
    allowed: float
    phase: str
    host: str

    @property
    def position(self) -> tuple[int, int]:
        return self.step, ORDER[self.phase]

    @property
    def place(self) -> str:
        return f"{self.phase} of step {self.step}" if self.step else self.phase


class Pulse:
    """This rank's heartbeat. quick, slow: the two time-outs in seconds."""

    def __init__(self, logs: Path, rank: int, quick: float, slow: float) -> None:
        self.file = os.open(heartbeat_file(logs, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.quick, self.slow, self.beats, self.step, self.cold_step = quick, slow, 0, 0, 0
        process = os.getpid()
        self.identity = (process, proc.started(process), threading.main_thread().ident or 0)
        self.host = host()
        self.beat("init")

    def expect_slow(self, step: int) -> None:
        """The first step of a stage compiles kernels and touches memory for the first time."""
        self.cold_step = step

    def beat(self, phase: str, step: int | None = None) -> None:
        """This rank begins ``phase``, or goes on with it. step: counts from 1; None: as before."""
        self.step = self.step if step is None else step
        self.beats += 1
        quick = phase in QUICK and self.step != self.cold_step
        allowed = float("inf") if phase in ENDLESS else self.quick if quick else self.slow
        record = _RECORD.pack(*self.identity, self.beats, self.step, allowed, phase.encode(), self.host)
        os.pwrite(self.file, record, 0)

    def around(self, loss_fn: Callable[[A, B], R]) -> Callable[[A, B], R]:
        """The same loss; once it is known, the backward pass begins. (With several micro-batches that is also the name
        of the next one's forward pass.)"""

        def loss(outputs: A, batch: B) -> R:
            result = loss_fn(outputs, batch)
            self.beat("backward")
            return result

        return loss


def print_stacks_on_signal() -> None:
    """Stacks of all threads go to stderr, which is logs/rank_N.log, on SIGUSR1 and on a crash. The handler needs no
    lock of Python's, so that it works in a rank that will never give that lock back."""
    faulthandler.enable()
    faulthandler.register(STACKS, all_threads=True)


def stop_signals() -> list[signal.Signals]:
    """What asks a run to save and end: also that its terminal is gone, unless nohup said not to mind."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]


def heartbeat_file(logs: Path, rank: int) -> Path:
    return logs / f"heartbeat_rank_{rank}"


def host() -> bytes:
    return socket.gethostname().encode()[:32]


def read_heartbeat(logs: Path, rank: int) -> Heartbeat | None:
    """None before the rank has begun."""
    try:
        content = heartbeat_file(logs, rank).read_bytes()
    except FileNotFoundError:
        return None
    if len(content) != _RECORD.size:
        return None
    pid, started, thread, beats, step, allowed, phase, machine = _RECORD.unpack(content)
    numbers = (pid, started, thread, beats, step, allowed)
    return Heartbeat(*numbers, phase.rstrip(b"\0").decode(), machine.rstrip(b"\0").decode())
