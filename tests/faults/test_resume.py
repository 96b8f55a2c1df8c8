"""A run that is killed again and again equals one that never was, bit for bit."""

import random
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.driver import Job, checkpoint_files, farside, last_step, sequence, status


def assert_equal(run: Path, reference: Path) -> None:
    assert status(run)["status"] == "finished"
    assert sequence(run) == sequence(reference)
    assert checkpoint_files(run) == checkpoint_files(reference)


@pytest.mark.timeout(180)
def test_killed_run_equals_an_uninterrupted_one(tmp_path: Path, two_ranks: list[str], reference: Path) -> None:
    """A rank, then the launcher alone. Stops: test_signals.py, and more of both with --all."""
    run, moments = tmp_path / "run", random.Random(0)

    victim = moments.randrange(2)
    with Job(two_ranks, tmp_path) as job:
        job.until(lambda: last_step(run) >= 9)
        job.signal(signal.SIGKILL, [job.rank(victim)])
        assert job.wait() == 1
        lines = job.err.read_text().splitlines()
        assert lines == [f"error: run: rank {victim} was killed by SIGKILL; the same command resumes"]
        assert job.gone()

    with Job(two_ranks, tmp_path) as job:
        job.until(lambda: last_step(run) >= moments.randrange(18, 24))
        job.signal(signal.SIGKILL)  # the launcher alone
        job.process.wait()
        assert job.gone(), "orphans of a killed launcher"
    assert farside(["status", "run"], tmp_path).stdout.split()[:2] == ["status", "killed"]

    done = farside(two_ranks, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step " in done.stdout
    assert_equal(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
def test_random_kills(tmp_path: Path, two_ranks: list[str], reference: Path, seed: int) -> None:
    run, moments = tmp_path / "run", random.Random(seed)
    for step in sorted(moments.sample(range(STEPS - 4), 2)):
        with Job(two_ranks, tmp_path) as job:
            job.until(lambda step=step: last_step(run) >= step)  # type: ignore[misc]
            if moments.random() < 0.5:
                job.kill_tree()
            else:
                job.signal(signal.SIGKILL, [job.rank(moments.randrange(2))])
                assert job.wait() == 1
            assert job.gone()
    assert farside(two_ranks, tmp_path).returncode == 0
    assert_equal(run, reference)
