"""A request to end saves first and exits 0: Ctrl-C, SIGTERM to any process, ``farside stop``; 10 times of 10."""

import contextlib
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.driver import Job, checkpoint_files, environment, farside, last_step, sequence, status


def interrupt(job: Job) -> None:
    """Ctrl-C in a terminal: SIGINT to the foreground process group."""
    os.killpg(job.process.pid, signal.SIGINT)


def terminate_everything(job: Job) -> None:
    """What a batch system does at the end of the time limit."""
    job.signal(signal.SIGTERM, job.pids())


WAYS: dict[str, Callable[[Job], None]] = {
    "interrupt": interrupt,
    "hang up": lambda job: job.signal(signal.SIGHUP),
    "torchrun": lambda job: job.signal(signal.SIGTERM, [job.torchrun()]),
    "one worker": lambda job: job.signal(signal.SIGTERM, [job.rank(1)]),
    "everything": terminate_everything,
    "stop file": lambda job: (Path(f"/proc/{job.process.pid}/cwd") / "run" / "stop").touch(),
}


@pytest.mark.timeout(60)
def test_interrupt_of_one_rank(tmp_path: Path, words: list[str]) -> None:
    with Job(["train", *words, "train.steps=4000", "run.dir=run"], tmp_path) as job:
        job.until(lambda: last_step(tmp_path / "run") >= 3)
        interrupt(job)
        assert job.wait() == 0, job.said()
        assert job.gone()
    assert status(tmp_path / "run")["status"] == "stopped"
    assert "stopped at step" in job.out.read_text()
    assert "stopping" in job.err.read_text()
    assert "Traceback" not in job.err.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_ten_stops_of_ten(tmp_path: Path, two_ranks: list[str], reference: Path, way: str) -> None:
    run, moments = tmp_path / "run", random.Random(way)
    for step in sorted(moments.sample(range(1, STEPS - 4), 10)):
        if last_step(run) >= step:
            step = last_step(run) + 1
        with Job(two_ranks, tmp_path) as job:
            job.until(lambda step=step: last_step(run) >= step)  # type: ignore[misc]
            WAYS[way](job)
            assert job.wait() == 0, job.said()
            assert job.gone()
        assert status(run)["status"] == "stopped", job.said()
    assert farside(two_ranks, tmp_path).returncode == 0
    assert sequence(run) == sequence(reference)
    assert checkpoint_files(run) == checkpoint_files(reference)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_second_signal_kills(tmp_path: Path, two_ranks: list[str]) -> None:
    with Job(two_ranks, tmp_path) as job:
        job.until(lambda: last_step(tmp_path / "run") >= 3)
        workers = [job.rank(0), job.rank(1)]
        job.signal(signal.SIGSTOP, workers)  # a step that never ends
        job.signal(signal.SIGTERM)
        job.until(lambda: b"stopping" in job.err.read_bytes())
        job.signal(signal.SIGTERM)
        assert job.wait() == 1
        assert job.gone()
    assert "killed on request" in job.err.read_text()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_terminal_that_goes_away(tmp_path: Path, words: list[str]) -> None:
    """The window is closed or the connection lost: the run saves, and printing into nothing fails nobody."""
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "farside.cli",
        "train",
        *words,
        "train.steps=4000",
        "run.dir=run",
        "logging.every=1",
    ]
    process = subprocess.Popen(
        ["setsid", "--ctty", *command],
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    deadline = time.monotonic() + 60
    while last_step(tmp_path / "run") < 3:
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(leader, False)
            os.read(leader, 65536)
        time.sleep(0.01)
    os.close(leader)  # the kernel sends SIGHUP to what runs in that terminal
    assert process.wait(60) == 0
    stopped = status(tmp_path / "run")
    assert stopped["status"] == "stopped"
    assert stopped["step"] == last_step(tmp_path / "run")
