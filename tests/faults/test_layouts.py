"""In every layout: a rank that dies takes the job with it, by name; the same command goes on bit for bit, and another
layout goes on to rounding."""

import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.driver import Job, checkpoint_files, farside, last_step, sequence

STEPS, DIES_IN, TIMEOUT = 12, 7, 20


@dataclass(frozen=True)
class Case:
    """degrees: where it dies and resumes; victim: the rank; other: a layout that goes on from the same moment."""

    degrees: str
    victim: int
    other: str = ""


CASES = [
    Case("dp_replicate=2", 1),
    Case("dp_shard=2", 0),
    Case("tp=2", 1, "cp=2"),
    Case("cp=2", 0, "pp=2"),
    Case("pp=2", 0),
    Case("tp=2 pp=2", 2, "dp_shard=1"),
]


def command_of(words: list[str], degrees: str) -> list[str]:
    layout = [f"parallel.{degree}" for degree in degrees.split()]
    steps = [f"train.steps={STEPS}", "checkpoint.every=4", f"train.timeout_seconds={TIMEOUT}", "run.dir=run"]
    return ["train", *words, *layout, *steps]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.degrees)
def test_rank_that_dies_within_a_step(tmp_path: Path, words: list[str], case: Case) -> None:
    command = command_of(words, case.degrees)
    whole, hurt, other = (tmp_path / name for name in ("whole", "hurt", "other"))
    for folder in (whole, hurt, other):
        folder.mkdir()
    done = farside(command, whole)
    assert done.returncode == 0, done.stderr
    wanted = sequence(whole / "run")
    assert [record["step"] for record in wanted] == list(range(1, STEPS + 1))

    fault = f"{case.victim} {DIES_IN} forward kill 0.01"
    with Job(command, hurt, "tests.faults.hurt", HURT=fault) as job:
        job.until(lambda: last_step(hurt / "run") >= DIES_IN - 1, seconds=150)
        reached = time.monotonic()
        assert job.wait() == 1, job.said()
        assert time.monotonic() - reached < TIMEOUT
        assert job.gone(1)
    said = f"error: run: rank {case.victim} was killed by {signal.SIGKILL.name}; the same command resumes"
    assert job.err.read_text().splitlines() == [said]
    assert last_step(hurt / "run") == DIES_IN - 1, "it died within the step"
    shutil.copytree(hurt / "run", other / "run")

    resumed = farside(command, hurt)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 4" in resumed.stdout
    assert sequence(hurt / "run") == wanted
    assert checkpoint_files(hurt / "run") == checkpoint_files(whole / "run")

    if not case.other:
        return
    elsewhere = farside(command_of(words, case.other), other)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert "resumed at step 4" in elsewhere.stdout
    for found, record in zip(sequence(other / "run"), wanted, strict=True):
        assert found["step"] == record["step"]
        assert found["loss"] == pytest.approx(record["loss"], rel=1e-6)
        assert found["grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-5)
        assert found["tokens"] == record["tokens"]
        assert found.get("batch_digest") == record.get("batch_digest"), "the same samples in the same order"
