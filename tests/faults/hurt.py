"""Pretraining that hurts itself: a worker, and a ``farside`` command that starts it instead of the real one.

A heartbeat is the place to do it, because it comes at the beginning of every phase on every rank. The variable HURT
names rank, step, phase and kind, such as "1 7 forward sleep", and for kill the seconds to wait first.
"""

import os
import signal
import sys
import threading
import time

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
    if not float(seconds):
        os.kill(os.getpid(), signal.SIGKILL)
    timer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def slow(seconds: str = "0.2") -> None:
    time.sleep(float(seconds))


KINDS = {item.__name__: item for item in (sleep, spin, deadlock, stop, crash, kill, slow)}


def hurt(rank: str, step: str, phase: str, kind: str, *more: str) -> None:
    """From now on. step: a number, or "every"."""
    from farside.train.liveness import Pulse

    beat = Pulse.beat

    def hurting(self: Pulse, name: str, number: int | None = None) -> None:
        beat(self, name, number)
        if os.environ.get("RANK", "0") == rank and name == phase and step in (str(self.step), "every"):
            KINDS[kind](*more)

    Pulse.beat = hurting  # type: ignore[method-assign]


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
