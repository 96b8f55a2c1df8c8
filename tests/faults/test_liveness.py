"""A job that stands still ends within its time-out and names the rank that the others wait for."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farside.train.liveness import ORDER, Pulse, read_heartbeat
from farside.train.watch import Watch, main_thread
from tests.faults import tally
from tests.faults.driver import Job, environment, last_step, status

STEPS, TIMEOUT = 12, 3
BARE = "torch.distributed.run --standalone --nproc-per-node=2 -m tests.faults.hurt"
HANGS = {
    "stop": "stopped by a signal",
    "sleep": "hurt.py",
    "spin": "hurt.py",
    "deadlock": "hurt.py",
}
WHERE = {"stop": "backward", "sleep": "forward", "spin": "step", "deadlock": "data"}
LIFE = """
import os, sys, time
from pathlib import Path
from farside.train.liveness import Pulse, print_stacks_on_signal
from tests.faults.hurt import KINDS
rank, kind = sys.argv[1:]
log = os.open(f"logs/rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 2)
print_stacks_on_signal()
pulse = Pulse(Path("logs"), int(rank), 0.6, 20.0)
waiting = {"time": time}
exec(compile("def all_reduce():\\n    time.sleep(60)", "/lib/torch/distributed/c10d.py", "exec"), waiting)
if kind == "busy":
    while True:
        pulse.beat("data", 7)
        time.sleep(0.05)
pulse.beat("data", 7)
waiting["all_reduce"]() if kind == "wait" else KINDS[kind]()
"""
"""A rank without torch: it says where it is and then waits for others, or hangs by itself."""


class Lives:
    """Two such ranks in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        (folder / "logs").mkdir()

    def start(self, *kinds: str) -> Watch:
        for rank, kind in enumerate(kinds):
            command = [sys.executable, "-c", LIFE, str(rank), kind]
            self.processes.append(subprocess.Popen(command, cwd=self.folder, env=environment()))
        watch = Watch(self.folder / "logs", len(kinds), 0.6, 20.0)
        until = time.monotonic() + 10
        while any(getattr(read_heartbeat(watch.logs, rank), "step", 0) != 7 for rank in range(len(kinds))):
            assert time.monotonic() < until
            time.sleep(0.02)
        return watch

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    started = Lives(tmp_path)
    yield started
    started.end()


def awaited(watch: Watch, seconds: float = 6) -> str:
    until = time.monotonic() + seconds
    while (line := watch.hang()) is None:
        assert time.monotonic() < until, "nobody was accused"
        time.sleep(0.05)
    return line


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", HANGS)
def test_culprit_is_told_from_those_that_wait(lives: Lives, kind: str) -> None:
    started = time.monotonic()
    watch = lives.start("wait", kind)
    line = awaited(watch)
    assert line.startswith("rank 1 in data of step 7, ")
    assert HANGS[kind] in line
    assert "the others wait for it" in line
    assert time.monotonic() - started < 0.6 + 5
    report = (watch.logs / "hang.txt").read_text().splitlines()
    assert report[0] == "rank 0 in data of step 7, waits in /lib/torch/distributed/c10d.py:2 all_reduce"
    if kind != "stop":
        assert "most recent call first" in (watch.logs / "rank_1.log").read_text()


@pytest.mark.timeout(30)
def test_nobody_is_accused_while_the_last_one_moves(lives: Lives) -> None:
    watch = lives.start("wait", "busy")
    until = time.monotonic() + 2
    while time.monotonic() < until:
        assert watch.hang() is None
        time.sleep(0.1)
    lives.processes[1].kill()
    lives.processes[1].wait()
    assert watch.dead() == "rank 1 died in data of step 7; the same command resumes"
    assert "rank 1 in data of step 7, dead" in awaited(watch)


@pytest.mark.timeout(30)
def test_all_wait_and_nobody_stands_out(lives: Lives) -> None:
    line = awaited(lives.start("wait", "wait"))
    assert line.startswith("no rank moves and none stands out: rank 0 in data of step 7, waits in")


def test_heartbeat_round_trip_and_deadlines(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, 3, 5.0, 50.0)
    pulse.expect_slow(1)
    seen = []
    for phase, step in (("data", 1), ("forward", None), ("save", None), ("data", 2), ("eval", None), ("end", None)):
        pulse.beat(phase, step)
        beat = read_heartbeat(tmp_path, 3)
        assert beat is not None
        assert (beat.phase, beat.beats) == (phase, pulse.beats)
        seen.append((beat.step, beat.allowed))
    assert seen == [(1, 50), (1, 50), (1, 50), (2, 5), (2, 50), (2, float("inf"))]
    assert read_heartbeat(tmp_path, 0) is None
    assert all(len(phase) <= 16 for phase in ORDER)


def test_a_heartbeat_costs_microseconds(tmp_path: Path) -> None:
    """Five a step: below a thousandth of a step of 50 ms, the shortest in our tests."""
    pulse = Pulse(tmp_path, 0, 5.0, 50.0)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(200):
            pulse.beat("forward")
        best = min(best, (time.perf_counter() - started) / 200)
    assert 5 * best < 0.05 / 1000


def test_frames_of_the_main_thread() -> None:
    text = (
        "Thread 0x00007f01 (most recent call first):\n"
        '  File "/a.py", line 1 in other\n\n'
        "Current thread 0x00007f02 (most recent call first):\n"
        '  File "/b.py", line 2 in inner\n  File "/c.py", line 3 in <module>\n'
    )
    assert main_thread(text, 0x7F02) == ["/b.py:2 inner", "/c.py:3 <module>"]
    assert main_thread(text, 0x7F03) == []


def hurt_job(words: list[str], folder: Path, fault: str, module: str = "tests.faults.hurt") -> Job:
    """Two ranks with short time-outs."""
    command = [] if module == BARE else ["train"]
    command += [*words, "parallel.dp_shard=2", f"train.steps={STEPS}", "checkpoint.every=4", "run.dir=run"]
    command += [f"train.timeout_seconds={TIMEOUT}", "train.slow_timeout_seconds=60"]
    return Job(command, folder, module, HURT=fault)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", HANGS)
@pytest.mark.parametrize("module", ["tests.faults.hurt", BARE], ids=["launcher", "torchrun"])
def test_hang_of_a_rank(tmp_path: Path, words: list[str], kind: str, module: str) -> None:
    run, phase = tmp_path / "run", WHERE[kind]
    with hurt_job(words, tmp_path, f"1 7 {phase} {kind}", module) as job:
        job.until(lambda: last_step(run) >= 6)
        reached = time.monotonic()
        assert job.wait() == 1, job.said()
        assert time.monotonic() - reached < TIMEOUT + 5
        assert job.gone(1)
    errors = [line for line in job.err.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    assert f"rank 1 in {phase} of step 7, " in errors[0]
    assert HANGS[kind] in errors[0]
    assert "rank_1.log" in errors[0]
    ended = status(run)
    assert ended["status"] == "failed"
    assert f"rank 1 in {phase} of step 7" in ended["cause"]
    stacks = [(run / "logs" / f"rank_{rank}.log").read_text() for rank in (0, 1)]
    assert "most recent call first" in stacks[0], "of all live ranks"
    assert kind == "stop" or "most recent call first" in stacks[1]
    starter = "torchrun" if module == BARE else "launcher"
    tally.add(f"a rank hangs ({kind}, {starter}): named, ended in time", 1, 1, "steps since the last checkpoint")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rank_that_raises(tmp_path: Path, words: list[str]) -> None:
    with hurt_job(words, tmp_path, "1 7 backward crash") as job:
        assert job.wait() == 1, job.said()
        assert job.gone(1)
    assert "rank 1: RuntimeError: a fault on purpose (see run/logs/rank_1.log)" in job.err.read_text()
    assert "rank 1: RuntimeError" in status(tmp_path / "run")["cause"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rank_that_dies_under_a_bare_torchrun(tmp_path: Path, words: list[str]) -> None:
    with hurt_job(words, tmp_path, "1 7 step kill", BARE) as job:
        assert job.wait() == 1, job.said()
        assert job.gone()
    assert "error: run: rank 1 died in step of step 7; the same command resumes" in job.err.read_text()
    assert status(tmp_path / "run")["cause"] == "rank 1 died in step of step 7; the same command resumes"
