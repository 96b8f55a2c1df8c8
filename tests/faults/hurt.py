"""Pretraining that hurts itself: a worker, and a ``farside`` command that starts it instead of the real one.

A heartbeat is the place to do it, because it comes at the beginning of every phase on every rank. The variable HURT
names rank, step, phase and kind, such as "1 7 forward sleep", and for kill and term the seconds to wait first.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

HURT = "HURT"


def sleep() -> None:
    time.sleep(3600)


def spin() -> None:
    """In C, and Python's lock is never given back."""
    sum(range(10**15))


def deadlock() -> None:
    """What a data loader does that waits for a thread which waits for it."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crash() -> None:
    raise RuntimeError("a fault on purpose")


def kill(seconds: str = "0") -> None:
    later(signal.SIGKILL, float(seconds))


def term(seconds: str = "0") -> None:
    later(signal.SIGTERM, float(seconds))


def later(number: signal.Signals, seconds: float) -> None:
    if not seconds:
        os.kill(os.getpid(), number)
        return
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def slow(seconds: str = "0.2") -> None:
    time.sleep(float(seconds))


KINDS = {item.__name__: item for item in (sleep, spin, deadlock, stop, crash, kill, term, slow)}


def hurt(rank: str, step: str, phase: str, kind: str, *more: str) -> None:
    """From now on. step: a number, or "every"."""
    from farside.train.liveness import Pulse

    beat = Pulse.beat

    def hurting(self: Pulse, name: str, number: int | None = None) -> None:
        beat(self, name, number)
        if os.environ.get("RANK", "0") == rank and name == phase and step in (str(self.step), "every"):
            KINDS[kind](*more)

    Pulse.beat = hurting  # type: ignore[method-assign]


def count_renames(log: str) -> None:
    """From now on every checkpoint that is put in its place is a line of ``log``."""
    originals = {"rename": os.rename, "replace": os.replace}
    for name in originals:

        def counted(source: Any, target: Any, original: Any = originals[name], **more: Any) -> None:
            original(source, target, **more)
            if Path(target).name.startswith("step_"):
                with open(log, "a") as lines:
                    lines.write(f"{Path(target).name}\n")

        setattr(os, name, counted)


if __name__ == "__main__":
    if "--resolved" in sys.argv or "RANK" in os.environ:
        if os.environ.get(HURT):
            hurt(*os.environ[HURT].split())
        from farside.train.pretrain import main
        from farside.train.runtime import worker_main

        worker_main(main)
    else:
        from farside.cli import main as command
        from farside.launch.commands import WORKERS

        WORKERS["train"] = "tests.faults.hurt"
        command()
