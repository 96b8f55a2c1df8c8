"""What saving and loading cost: the time that training stands still, write speed against the raw disk, reading.

python scripts/bench_checkpoint.py [--megabytes 500] [--rounds 5] [--directory DIR]

One rank with a state of that size, weights and two moments in float32. Synchronous and asynchronous saves take turns in
one process, so that both see the same machine; medians over the rounds. Between the saves a matrix product stands in
for training, whose slowdown beside the writer is measured too.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from farside.configs.schema import CheckpointConfig
from farside.parallel.box import Box, Piece, Stored
from farside.train.checkpoint.format import load
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.base import EngineState

COLUMNS = 1024


class State:
    """A stand-in for an engine: matrices of 4 MiB until ``megabytes`` (10^6 bytes) are full."""

    def __init__(self, megabytes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        count = max(1, megabytes * 1_000_000 // (3 * 4 * COLUMNS * COLUMNS))
        self.groups: dict[str, dict[str, Piece]] = {"model": {}, "optimizer": {}}
        for number in range(count):
            for group, prefix in (("model", ""), ("optimizer", "exp_avg."), ("optimizer", "exp_avg_sq.")):
                values = torch.randn(COLUMNS, COLUMNS, generator=generator)
                self.groups[group][f"{prefix}w{number}"] = Piece(values.shape, Box.whole(values.shape), values)

    @property
    def bytes(self) -> int:
        return sum(piece.values.nbytes for group in self.groups.values() for piece in group.values())

    def check_replicas(self) -> None:
        """Each rank holds its own."""

    def state_dict(self) -> EngineState:
        return EngineState(self.groups["model"], self.groups["optimizer"], 1)

    def load_state_dict(self, model: Stored, optimizer: Stored, updates: int) -> None:
        for group, stored in (("model", model), ("optimizer", optimizer)):
            for name, piece in self.groups[group].items():
                piece.values.copy_(stored.read(name, piece.box))


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def raw_write(folder: Path, size: int) -> None:
    """The disk alone: the same bytes, one file, synced."""
    chunk = os.urandom(1 << 23)
    with (folder / "raw").open("wb") as stream:
        for _ in range(size // len(chunk)):
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    (folder / "raw").unlink()


class Training:
    """Steps of about 20 ms."""

    def __init__(self) -> None:
        self.x = torch.randn(700, 700)

    def steps_while(self, busy: Callable[[], bool]) -> list[float]:
        found = []
        while busy():
            found.append(seconds(self.step))
        return found

    def step(self) -> None:
        for _ in range(3):
            self.x @ self.x


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        measure(folder, State(arguments.megabytes), arguments.rounds)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, state: State, rounds: int) -> None:
    training = Training()
    stores = {
        kind: CheckpointStore(folder / kind, CheckpointConfig(keep=1, asynchronous=kind == "asynchronous"), None, {})
        for kind in ("synchronous", "asynchronous")
    }
    stalls: dict[str, list[float]] = {kind: [] for kind in stores}
    raw, behind, alone, beside = [], [], [], []
    for step in range(rounds + 1):  # the first allocates and warms, and is left out
        until = time.perf_counter() + 1.0
        alone += training.steps_while(lambda until=until: time.perf_counter() < until)  # type: ignore[misc]
        raw.append(seconds(lambda: raw_write(folder, state.bytes)))
        for kind, store in stores.items():
            stalls[kind].append(seconds(lambda store=store, step=step: store.save(state, step, {})))  # type: ignore[misc]
            saving = store.saving
            if saving is not None:
                started = time.perf_counter()
                beside += training.steps_while(saving.thread.is_alive)
                behind.append(time.perf_counter() - started)
            store.finish()
    sync, stall = (statistics.median(stalls[kind][1:]) for kind in ("synchronous", "asynchronous"))
    gigabytes = state.bytes / 1e9
    print(f"state of {state.bytes:,} bytes, {rounds} rounds")
    print(f"stall ratio {stall / sync:.3f}: asynchronous {stall:.3f} s, synchronous {sync:.3f} s")
    for kind, values in stalls.items():
        print(f"stalls {kind}: {' '.join(f'{value:.3f}' for value in values)} s, the first to warm up")
    print(f"written behind training in {statistics.median(behind[1:]):.2f} s")
    print(f"a step takes {statistics.median(beside) / statistics.median(alone):.2f} of its time alone meanwhile")
    disk = statistics.median(raw[1:])
    print(f"write {gigabytes / sync:.2f} GB/s synchronous, {gigabytes / disk:.2f} GB/s raw disk, each with its sync")
    path = folder / "synchronous" / "checkpoints" / f"step_{rounds:08d}"
    verify = seconds(lambda: load(path).verify())
    resume = seconds(lambda: CheckpointStore(folder / "synchronous", CheckpointConfig(), None, {}).resume(state))
    print(f"read {gigabytes / verify:.2f} GB/s verifying, {gigabytes / resume:.2f} GB/s verifying and loading")


if __name__ == "__main__":
    main()
