"""A pool of gloo ranks that lives as long as the test session.

Starting a process with torch costs seconds, so ranks are forked once from a server that has it imported, and
every call of ``run`` gives them a fresh process group. Orders and results travel over pipes, outside gloo: a
rank that raises, dies or hangs is seen and named, whatever its peers wait for.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor._collective_utils import MeshTopoInfo
from torch.distributed.tensor._redistribute import _gen_transform_infos, clear_redistribute_planner_cache
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

PRELOAD = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "farside.train.engine.native"]


@dataclass(frozen=True)
class Rank:
    """What a test function learns of its place."""

    rank: int
    world_size: int


class RankError(AssertionError):
    """A rank raised, died or did not answer; the text holds its number and traceback."""


class RankPool:
    """Ranks are started by the first call that needs them, and anew after a failure."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, 0
        self.workers: list[tuple[BaseProcess, Connection]] = []
        self.store: dist.TCPStore | None = None

    def run(self, fn: Callable[..., Any], world_size: int, *args: Any, deadline: float = 60.0) -> list[Any]:
        """``fn(Rank(i, world_size), *args)`` on ranks 0 .. world_size - 1; their results in that order.

        fn: a top-level function. It finds an initialised gloo group of ``world_size`` (none for one rank).
        Raises RankError naming the first rank that failed, or all that passed the ``deadline`` (seconds).
        """
        assert 1 <= world_size <= self.size, f"the pool has {self.size} ranks"
        if self.store is None:
            self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        while len(self.workers) < world_size:
            self._start()
        self.calls += 1
        workers = self.workers[:world_size]
        try:
            for rank, (_, connection) in enumerate(workers):
                connection.send((self.store.port, f"call{self.calls}", Rank(rank, world_size), fn, args))
            return self._collect([connection for _, connection in workers], fn.__name__, deadline)
        except BaseException:
            self.close()  # peers may hang in a collective: only new processes are clean
            raise

    def _collect(self, connections: list[Connection], name: str, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, tuple[float, str]] = {}  # when, what: peers of a failed rank fail later, as an echo
        until = time.monotonic() + deadline
        while missing := [rank for rank in range(len(connections)) if rank not in results and rank not in failures]:
            ready = wait([connections[rank] for rank in missing], max(0.0, until - time.monotonic()))
            for rank in missing:
                if connections[rank] not in ready:
                    continue
                try:
                    ended, failed, value = connections[rank].recv()
                except EOFError:
                    failures[rank] = (0.0, "died")
                    continue
                if failed:
                    failures[rank] = (ended, f"raised\n{value}")
                else:
                    results[rank] = value
            if failures and not ready:
                break
            if failures:
                until = time.monotonic() + 0.1  # the cause may still be on its way
            elif not ready:
                raise RankError(f"{name}: ranks {missing} gave no answer within {deadline:.0f} s")
        if failures:
            rank = min(failures, key=lambda number: failures[number][0])
            raise RankError(f"{name}: rank {rank} {failures[rank][1]}")
        return [results[rank] for rank in range(len(connections))]

    def _start(self) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.workers.append((process, ours))

    def close(self) -> None:
        for process, connection in self.workers:
            connection.close()
            process.kill()
            process.join()
        self.workers = []


def _serve(connection: Connection) -> None:
    """A rank's life: orders in, results out, until the pipe closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphans when the session is killed
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    gc.freeze()  # what is imported stays: _forget need not walk it
    while True:
        try:
            port, name, place, fn, args = connection.recv()
        except EOFError:
            return
        try:
            result = _call(port, name, place, fn, args)
            connection.send((time.monotonic(), False, result))
        except Exception:
            connection.send((time.monotonic(), True, traceback.format_exc()))
        finally:  # after the answer: that a peer sees the group go down is an echo, never the first news
            if dist.is_initialized():
                dist.destroy_process_group()
                _forget()


def _forget() -> None:
    """Ends the threads of the call's groups: they live until nothing refers to a group, but meshes are cycles.

    Gloo has three threads a group, a mesh a dozen groups, and one of the three wakes a hundred times a second: what a
    few dozen calls leave behind would keep two cores busy.
    """
    _clear_sharding_prop_cache()  # DTensor's caches hold meshes too: to a later call their groups are dead
    clear_redistribute_planner_cache()
    _gen_transform_infos.cache_clear()
    MeshTopoInfo.build_from_mesh.cache_clear()
    gc.collect()


def _call(port: int, name: str, place: Rank, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if place.world_size > 1:
        store = dist.PrefixStore(name, dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False))
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.world_size)
    result = fn(place, *args)
    if place.world_size > 1:
        dist.barrier()  # nobody takes the group down while a peer still reads from it
    return result
