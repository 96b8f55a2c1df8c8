"""Ranks as a bare torchrun starts them, but forked from a server that has torch imported: a job begins within a second.

What torchrun would do is done here: a port, the ranks' variables, and an end for all when one fails.
"""

import multiprocessing
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from farside.train.liveness import Heartbeat, read_heartbeat
from tests.faults.driver import TOKEN, _environ, _processes
from tests.faults.hurt import count_renames, hurt

PRELOAD = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "farside.train.pretrain", "farside.rl.train"]


class ForkedJob:
    """Ranks of ``module`` (farside.train.pretrain, farside.rl.train) in a working directory. fault: as in ``hurt``."""

    def __init__(
        self, words: list[str], cwd: Path, fault: str = "", ranks: int = 2, module: str = "farside.train.pretrain"
    ) -> None:
        self.cwd, self.logs, self.token = cwd, cwd / "run" / "logs", secrets.token_hex(8)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), TOKEN: self.token}
        for file in self.logs.glob("heartbeat_rank_*"):
            file.unlink()
        self.ranks: list[BaseProcess] = []
        for rank in range(ranks):
            own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
            process = context.Process(target=_rank, args=(module, words, str(cwd), own, fault))
            process.start()
            self.ranks.append(process)

    def heartbeat(self, rank: int) -> Heartbeat | None:
        return read_heartbeat(self.logs, rank)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"the awaited moment did not come: {self.said()}"
            assert any(process.is_alive() for process in self.ranks), f"ended before: {self.said()}"
            time.sleep(0.002)

    def wait(self, seconds: float = 60) -> list[int]:
        """Exit codes, a signal's negative. When a rank fails the others get five seconds."""
        deadline = time.monotonic() + seconds
        while any(process.is_alive() for process in self.ranks):
            codes = [process.exitcode for process in self.ranks]
            if any(codes):
                deadline = min(deadline, time.monotonic() + 5)
            assert time.monotonic() < deadline, f"did not end: {codes} {self.said()}"
            time.sleep(0.01)
        return [process.exitcode or 0 for process in self.ranks]

    def gone(self, seconds: float = 5) -> bool:
        """Whether nothing that the ranks started is left after at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._children() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._children()

    def _children(self) -> set[int]:
        mark = f"{TOKEN}={self.token}".encode()
        alive = [pid for pid, parent in _processes().items() if parent is not None]
        return {pid for pid in alive if mark in _environ(pid)}

    def said(self) -> str:
        logs = [path.read_text()[-1500:] for path in sorted(self.logs.glob("rank_*.log"))]
        return "\n".join([str([process.exitcode for process in self.ranks]), *logs])

    def kill(self) -> None:
        for process in self.ranks:
            process.kill()
            process.join()

    def __enter__(self) -> "ForkedJob":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def _rank(module: str, words: list[str], cwd: str, variables: dict[str, str], fault: str) -> None:
    """Becomes a rank; never returns."""
    import importlib

    os.chdir(cwd)
    os.environ.update(variables)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(f"rank_{variables['RANK']}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [module, *words]
    if fault:
        hurt(*fault.split())
    count_renames("renames.log")
    worker = importlib.import_module(module)
    worker.worker_main(worker.main)
