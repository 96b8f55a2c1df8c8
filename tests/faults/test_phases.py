"""``farside run``, hurt once in every phase, ends as a job that never was: floats, checkpoints, needle grids."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import tally
from tests.faults.driver import Job, checkpoint_files, farside, last_step, sequence, status

PHASES = ("pretrain", "sft", "reward", "rl", "rl_reward_alone", "eval")
Moment = Callable[[Path], bool]


def at_step(phase: str, step: int) -> Moment:
    return lambda run: last_step(run / phase) >= step


def in_grid(run: Path) -> bool:
    """The stage's last step is saved and its needle grid is not there yet."""
    return (run / "pretrain" / "checkpoints" / "step_00000004").is_dir()


def sampling(run: Path) -> bool:
    """The reward phase's ranks are up; its pairs are not drawn."""
    return (run / "reward" / "machine.json").is_file()


def evaluating(run: Path) -> bool:
    return (run / "eval" / "machine.json").is_file()


def moments(generator: random.Random) -> list[tuple[str, str, Moment]]:
    """(phase, label, condition), one for every part of the job, in order."""
    step = generator.randrange
    return [
        ("pretrain", "step", at_step("pretrain", step(1, 4))),
        ("pretrain", "grid", in_grid),
        ("pretrain", "second stage", at_step("pretrain", step(5, 8))),
        ("sft", "step", at_step("sft", step(1, 30))),
        ("sft", "later step", at_step("sft", step(30, 58))),
        ("reward", "sampling", sampling),
        ("reward", "step", at_step("reward", step(1, 5))),
        ("rl", "step", at_step("rl", step(1, 3))),
        ("rl", "later step", at_step("rl", step(3, 5))),
        ("eval", "grid", evaluating),
    ]


@pytest.fixture(scope="module")
def job_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("data")
    words = ["experiment=smoke", f"data.dir={data}", "reward.prompts=512", "reward.held_out_prompts=512"]
    assert farside(["data", "prepare", *words], data).returncode == 0
    return ["run", *words, "run.dir=run", "logging.every=10"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, job_words: list[str]) -> Path:
    root = tmp_path_factory.mktemp("whole")
    done = farside(job_words, root, seconds=300)
    assert done.returncode == 0, done.stderr
    return root / "run"


def grids(run: Path) -> dict[str, Any]:
    found = {path.parent.name: json.loads(path.read_text()) for path in (run / "eval").glob("*/niah.json")}
    return {name: {key: value for key, value in grid.items() if key != "seconds"} for name, grid in found.items()}


def assert_equal(run: Path, whole: Path) -> None:
    assert status(run)["status"] == "finished"
    assert (run / "report.html").is_file()
    for phase in PHASES[:-1]:
        assert sequence(run / phase) == sequence(whole / phase), phase
        assert checkpoint_files(run / phase) == checkpoint_files(whole / phase), phase
        ours, theirs = (json.loads((root / phase / "summary.json").read_text()) for root in (run, whole))
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}, phase
    for name in (
        "reward/pairs.jsonl",
        "reward/normalisation.json",
        "rl/samples.jsonl",
        "rl/held_out.jsonl",
        "sft/traces.jsonl",
    ):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert grids(run) == grids(whole)
    assert sorted(grids(run)) == ["after_rl", "base", "extended"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("victim", "seed"), [("tree", 1), ("rank", 2), ("launcher", 4)])
def test_killed_in_every_phase(tmp_path: Path, job_words: list[str], whole: Path, victim: str, seed: int) -> None:
    generator, run = random.Random(seed), tmp_path / "run"
    for phase, label, moment in moments(generator):
        with Job(job_words, tmp_path) as job:
            job.until(lambda moment=moment: moment(run), seconds=120)  # type: ignore[misc]
            if label == "sampling":
                time.sleep(generator.random() * 0.3)
            if victim == "tree":
                job.kill_tree()
            elif victim == "launcher":
                job.signal(signal.SIGKILL)
                job.process.wait()
            else:
                number = generator.randrange(2)
                job.signal(signal.SIGKILL, [job.rank(number)])
                assert job.wait() == 1, job.said()
                assert f"rank {number} was killed by SIGKILL" in job.err.read_text().splitlines()[-1]
            assert job.gone(), f"orphans after {phase}, {label}"
        assert status(run / phase)["status"] != "finished", f"missed {phase}, {label}"
        if label == "grid" and phase == "pretrain":
            assert not (run / "pretrain" / "eval" / "base" / "niah.json").exists()
        if label == "sampling":
            assert not (run / "reward" / "pairs.jsonl").exists()
    done = farside(job_words, tmp_path, seconds=300)
    assert done.returncode == 0, done.stderr
    assert_equal(run, whole)
    what = {"tree": "all processes of the job", "rank": "one rank", "launcher": "the launcher"}[victim]
    tally.add(f"SIGKILL of {what} in every phase of `farside run`", 10, 10, "nothing: bit for bit")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM], ids=lambda number: number.name)
def test_stopped_in_every_phase(tmp_path: Path, job_words: list[str], whole: Path, number: signal.Signals) -> None:
    """10 of 10 requests end in exit code 0 and status "stopped"."""
    generator, run = random.Random(int(number)), tmp_path / "run"
    for phase, label, moment in moments(generator):
        with Job(job_words, tmp_path) as job:
            job.until(lambda moment=moment: moment(run), seconds=120)  # type: ignore[misc]
            job.signal(number)
            assert job.wait() == 0, job.said()
            assert job.gone()
        assert status(run)["status"] == "stopped", f"{phase}, {label}: {job.said()}"
    done = farside(job_words, tmp_path, seconds=300)
    assert done.returncode == 0, done.stderr
    assert_equal(run, whole)
    tally.add("SIGTERM in every phase of `farside run` (exit code 0)", 10, 10, "nothing: bit for bit")
