"""Which rank the others wait for: each rank's own time, without its waits, beside the fastest one's.

A thread looks at the main thread's innermost frame fifty times a second and counts how often it waits for other ranks
(torch's communication, or ours). What remains of the wall-clock is the rank's own: computing, reading data, sleeping.
The score is that of NVIDIA's resiliency extension (relative performance): the fastest rank's own time over this one's.
On CUDA only the host's time is seen; a slow device is not.
"""

import sys
import threading
import time

import torch

from farside.parallel import comm
from farside.train.watch import is_collective

PERIOD = 0.02
SLOW_SCORE = 0.6
ENOUGH = 1.0
"""Seconds of samples below which a score is noise."""


class OwnTime:
    """Samples the thread that made it until ``close``."""

    def __init__(self) -> None:
        self.thread, self.samples, self.waits = threading.get_ident(), 0, 0
        self.started, self.ended = time.perf_counter(), threading.Event()
        threading.Thread(target=self._sample, daemon=True, name="own time").start()

    def _sample(self) -> None:
        while not self.ended.wait(PERIOD):
            frame = sys._current_frames().get(self.thread)
            while frame is not None and "torch/_ops.py" in frame.f_code.co_filename:
                frame = frame.f_back
            self.samples += 1
            if frame is not None and is_collective(f"{frame.f_code.co_filename}:"):
                self.waits += 1

    def take(self) -> tuple[float, float]:
        """(own seconds, all seconds) since the last call."""
        now = time.perf_counter()
        seconds, share = now - self.started, 1 - self.waits / max(self.samples, 1)
        self.started, self.samples, self.waits = now, 0, 0
        return seconds * share, seconds

    def close(self) -> None:
        self.ended.set()


class Stragglers:
    """Compares the ranks every ``every`` steps; of one rank there is nothing to say."""

    def __init__(self, every: int, world: comm.Group, device: torch.device) -> None:
        self.every, self.world, self.device = every, world, device
        self.own = OwnTime() if every and comm.size(world) > 1 else None

    def compare(self, step: int) -> dict[str, float]:
        """For metrics.jsonl, at the steps that are due: the rank with the most time of its own, its score, and that
        time as a share of all. Collective."""
        if self.own is None or step % self.every:
            return {}
        own, seconds = self.own.take()
        mine = torch.tensor([own], dtype=torch.float64, device=self.device)
        times = comm.all_gather(mine, self.world).tolist()
        if seconds < ENOUGH:
            return {}
        slowest = max(range(len(times)), key=lambda rank: times[rank])
        score = min(times) / max(times[slowest], 1e-9)
        return {"slowest_rank": slowest, "slowest_score": score, "slowest_own_share": times[slowest] / seconds}

    def close(self) -> None:
        if self.own is not None:
            self.own.close()


def warning(record: dict[str, float]) -> str | None:
    """A line to print if a rank is slow."""
    if record.get("slowest_score", 1.0) >= SLOW_SCORE:
        return None
    return (
        f"rank {record['slowest_rank']} is slow: score {record['slowest_score']:.2f} (the fastest rank's own time over "
        f"its own), and the others wait for it"
    )
