"""Watches the ranks' heartbeats from outside, and says which rank the others wait for when a job stands still.

The launcher does this; under a bare torchrun a process of its own on every machine: ``python -m farside.train.watch``.
Evidence, in this order: a rank whose process is stopped; a rank that is not inside a collective, by its stack; the
rank that is behind the others. Ranks on other machines are judged by their heartbeats alone.
"""

import contextlib
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from farside.train import proc
from farside.train.liveness import STACKS, Heartbeat, host, read_heartbeat
from farside.train.metrics import write_status

STACK_SECONDS = 2.0
"""A live rank prints its stacks within this time."""
REPORT = "hang.txt"


@dataclass(frozen=True)
class Evidence:
    """What is known of a rank that stands still. frames: its main thread's, innermost first: "file:line function"."""

    rank: int
    heartbeat: Heartbeat | None
    state: str
    frames: list[str]

    @property
    def stopped(self) -> bool:
        return bool(self.state) and self.state in proc.STOPPED

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks."""
        frames = [frame for frame in self.frames if "torch/_ops.py" not in frame]
        return bool(frames) and is_collective(frames[0])

    @property
    def line(self) -> str:
        place = self.heartbeat.place if self.heartbeat else "start"
        if why := proc.describe(self.state):
            return f"rank {self.rank} in {place}, {why}"
        if not self.frames:
            return f"rank {self.rank} in {place}"
        return f"rank {self.rank} in {place}, {'waits in' if self.waits else 'at'} {self.frames[0]}"


class Watch:
    """Of ``ranks`` ranks whose heartbeats are in ``logs``. allowed: seconds until a rank's first beat."""

    def __init__(self, logs: Path, ranks: int, quick: float, slow: float) -> None:
        self.logs, self.allowed = logs, slow
        self.interval = min(5.0, max(0.2, quick / 20))
        now = time.monotonic()
        self.seen: list[tuple[Heartbeat | None, float]] = [(None, now)] * ranks
        """Of each rank its last heartbeat, and since when it has stood there by this process's clock."""

    def hang(self) -> str | None:
        """One line that names the culprit if the job stands still, else None. Leaves all ranks' stacks in their logs
        and a summary in hang.txt."""
        if not self._stands_still():
            return None
        offsets = [self._log_size(rank) for rank in range(len(self.seen))]
        evidence = [self._collect(rank, offset) for rank, offset in enumerate(offsets)]
        if not self._stands_still():  # it moved while we looked
            return None
        (self.logs / REPORT).write_text("".join(f"{item.line}\n" for item in evidence))
        return self._accuse(evidence)

    def _stands_still(self) -> bool:
        """Whether every rank that is as far behind as any has stood there longer than it may."""
        self._refresh()
        now = time.monotonic()
        behind = min(_position(heartbeat) for heartbeat, _ in self.seen)
        return all(
            now - since > (heartbeat.allowed if heartbeat else self.allowed)
            for heartbeat, since in self.seen
            if _position(heartbeat) == behind
        )

    def _refresh(self) -> None:
        for rank, (old, _) in enumerate(self.seen):
            new = read_heartbeat(self.logs, rank)
            if new is not None and new != old:
                self.seen[rank] = (new, time.monotonic())

    def _accuse(self, evidence: list[Evidence]) -> str:
        suspects = [item for item in evidence if item.stopped] or [item for item in evidence if not item.waits]
        suspects = suspects or evidence
        behind = min(_position(item.heartbeat) for item in suspects)
        culprits = [item for item in suspects if _position(item.heartbeat) == behind]
        if len(culprits) == len(evidence) > 1:
            lines = "; ".join(item.line for item in culprits[:4])
            return f"no rank moves and none stands out: {lines} (see {self.logs / REPORT})"
        number = culprits[0].rank
        allowed = culprits[0].heartbeat.allowed if culprits[0].heartbeat else self.allowed
        others = "" if len(evidence) == 1 else ", the others wait for it"
        more = f" (and {len(culprits) - 1} more ranks)" if len(culprits) > 1 else ""
        return (
            f"{culprits[0].line}{more}: no progress for {allowed:.0f} s{others}; stacks in "
            f"{self.logs / f'rank_{number}.log'} and {self.logs / REPORT}; the same command resumes"
        )

    def local(self) -> dict[int, Heartbeat]:
        """Ranks of this machine that have begun."""
        here = host().decode()
        return {rank: beat for rank, (beat, _) in enumerate(self.seen) if beat is not None and beat.host == here}

    def dead(self) -> str | None:
        """One line that names a rank of this machine which is gone without having said why, else None."""
        if not self.local():
            self._refresh()
        for rank, beat in self.local().items():
            if beat.phase != "end" and not proc.is_alive(beat.pid, beat.started):
                last = read_heartbeat(self.logs, rank) or beat
                same = (last.pid, last.started) == (beat.pid, beat.started)  # else its successor has begun
                if same and last.phase != "end" and not (self.logs / f"error_rank_{rank}.json").exists():
                    return f"rank {rank} died in {last.place}; the same command resumes"
        return None

    def kill(self) -> None:
        """Every rank of this machine, at once."""
        for beat in self.local().values():
            if proc.is_alive(beat.pid, beat.started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGKILL)

    def _log_size(self, rank: int) -> int:
        path = self.logs / f"rank_{rank}.log"
        return path.stat().st_size if path.exists() else 0

    def _collect(self, rank: int, offset: int) -> Evidence:
        beat = self.local().get(rank)
        if beat is None:
            return Evidence(rank, self.seen[rank][0], "", [])
        state = proc.state(beat.pid, beat.started)
        if state in proc.STOPPED or state in "ZX":
            return Evidence(rank, beat, state, [])
        os.kill(beat.pid, STACKS)
        until, log, size = time.monotonic() + STACK_SECONDS, self.logs / f"rank_{rank}.log", -1
        while time.monotonic() < until:
            time.sleep(0.05)
            if size == (size := self._log_size(rank)) and (frames := main_thread(_tail(log, offset), beat.thread)):
                return Evidence(rank, beat, state, frames)
        return Evidence(rank, beat, state, [])


def _position(heartbeat: Heartbeat | None) -> tuple[int, int]:
    return heartbeat.position if heartbeat else (0, 0)


def _tail(log: Path, offset: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(offset)
        return stream.read().decode(errors="replace")


def main_thread(text: str, thread: int) -> list[str]:
    """Frames of a thread, innermost first, from what ``faulthandler`` prints."""
    found: list[str] = []
    here = False
    for line in text.splitlines():
        if head := re.match(r"(?:Current thread|Thread) (0x[0-9a-f]+)", line):
            here = int(head[1], 16) == thread
        elif here and (frame := re.match(r'  File "(.*)", line (\d+) in (.*)', line)):
            found.append(f"{frame[1]}:{frame[2]} {frame[3]}")
    return found


def is_collective(frame: str) -> bool:
    """Whether a rank whose innermost frame this is waits for others: torch's communication, or ours."""
    return "/torch/distributed/" in frame or "/parallel/comm.py:" in frame


def main(directory: Path, ranks: int, quick: float, slow: float) -> None:
    """Until every rank of this machine is gone; torchrun then sees its ranks killed, and ends the job."""
    watch = Watch(directory / "logs", ranks, quick, slow)
    looked = time.monotonic()
    while True:
        time.sleep(0.2)
        line = watch.dead()
        if line is None and time.monotonic() - looked >= watch.interval:
            looked, line = time.monotonic(), watch.hang()
        if line:
            write_status(directory, "failed", cause=line)
            print(f"error: {directory}: {line}", file=sys.stderr, flush=True)
            watch.kill()
            return
        here = watch.local().values()
        if here and not any(proc.is_alive(beat.pid, beat.started) for beat in here):
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
