"""Many faults, seeded, at random ranks and phases: a run that is hurt again and again equals one that never was."""

import os
import random
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from farside.train.metrics import read_metrics
from tests.faults import tally
from tests.faults.driver import checkpoint_files, farside, last_step, sequence, status
from tests.faults.forked import ForkedJob
from tests.faults.test_rl_resume import REPLAY

STEPS, SAVE, EVAL = 24, 3, 4
PHASES = ("data", "forward", "backward", "step", "save", "eval")


@pytest.fixture(scope="module")
def hurt_words(words: list[str]) -> list[str]:
    return [
        *(*words, "parallel.dp_shard=2", f"train.steps={STEPS}", f"checkpoint.every={SAVE}", "run.dir=run"),
        *(f"eval.every={EVAL}", "eval.training_points=2", "eval.niah.max_length=160"),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, hurt_words: list[str]) -> Path:
    """Never hurt."""
    root = tmp_path_factory.mktemp("whole")
    with ForkedJob(hurt_words, root) as job:
        assert job.wait() == [0, 0], job.said()
    return root / "run"


def assert_equal(run: Path, whole: Path) -> None:
    assert status(run)["status"] == "finished"
    assert sequence(run) == sequence(whole)
    assert checkpoint_files(run) == checkpoint_files(whole)
    assert (run / "niah.jsonl").read_bytes() == (whole / "niah.jsonl").read_bytes()


def saved(run: Path) -> int:
    """Step of the newest complete checkpoint."""
    return max((int(path.parent.name[5:]) for path in run.glob("checkpoints/step_*/manifest.json")), default=0)


def target(generator: random.Random, phase: str, done: int) -> int:
    """The step to strike at: among the next few that have this phase."""
    every = {"save": SAVE, "eval": EVAL}.get(phase, 1)
    steps = [step for step in range(done + 1, STEPS + 1) if step % every == 0 and (phase != "eval" or step < STEPS)]
    return generator.choice(steps[: max(1, 4 // every)]) if steps else 0


def kills(folder: Path, words: list[str], whole: Path, seed: int, count: int) -> Counter[str]:
    """Strikes until ``count`` ranks have died, in one run after the other; their phases. Every run is carried to its
    end and compared."""
    generator, died, number = random.Random(seed), Counter[str](), 0
    root = folder / "0"
    root.mkdir()
    while True:
        phase, rank, delay = generator.choice(PHASES), generator.randrange(2), generator.choice([0, generator.random()])
        step = target(generator, phase, saved(root / "run"))
        over = sum(died.values()) == count
        with ForkedJob(words, root, "" if over or not step else f"{rank} {step} {phase} kill {delay / 50}") as job:
            codes = job.wait()
            assert job.gone(), "orphans"
        if codes[rank] == -9:
            beat = job.heartbeat(rank)
            assert beat is not None
            died[beat.phase] += 1
            assert codes[1 - rank] != 0
            continue
        assert codes == [0, 0], job.said()
        assert_equal(root / "run", whole)
        if over:
            return died
        number += 1
        root = folder / str(number)
        root.mkdir()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_kills(tmp_path: Path, hurt_words: list[str], whole: Path) -> None:
    died = kills(tmp_path, hurt_words, whole, 20261127, 50)
    assert set(died) >= set(PHASES), died
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(died.items()))
    tally.add(
        f"SIGKILL of one of two ranks ({phases})", 50, sum(died.values()), "nothing: metrics and weights bit for bit"
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", ["init", "train", "eval", "save"])
def test_sigterm_saves_ten_times_of_ten(tmp_path: Path, hurt_words: list[str], whole: Path, phase: str) -> None:
    generator, run, slowest = random.Random(phase), tmp_path / "run", 0.0
    words = [*hurt_words, "eval.niah.max_length=512"] if phase == "eval" else hurt_words
    for _ in range(10):
        name = generator.choice(PHASES[:4]) if phase == "train" else phase
        step = 0 if phase == "init" else target(generator, name, saved(run))
        if phase != "init" and not step:  # at its end: another
            shutil.rmtree(run)
            step = target(generator, name, 0)
        (tmp_path / "renames.log").unlink(missing_ok=True)
        fault = f"{generator.randrange(2)} {step} {name} term {generator.choice([0, generator.random()]) / 50}"
        with ForkedJob(words, tmp_path, fault) as job:
            job.until(lambda job=job, name=name, step=step: _reached(job, name, step))  # type: ignore[misc]
            asked = time.monotonic()
            codes = job.wait()
            slowest = max(slowest, time.monotonic() - asked)
            assert codes == [0, 0], job.said()
            assert job.gone()
        ended = status(run)
        if ended["status"] == "finished":  # the signal came in the last step, whose end is the job's
            assert step == STEPS
            shutil.rmtree(run)
            continue
        assert ended["status"] == "stopped"
        assert ended["step"] == last_step(run) == saved(run)
        written = (tmp_path / "renames.log").read_text().split() if (tmp_path / "renames.log").exists() else []
        assert len(written) == len(set(written)), "two saves of one step"
    assert slowest < 20
    with ForkedJob(words, tmp_path) as job:
        assert job.wait() == [0, 0], job.said()
    if phase == "eval":  # larger grids than the other run's; one that was cut short is drawn again
        assert [line["step"] for line in read_metrics(run / "niah.jsonl")] == list(range(EVAL, STEPS, EVAL))
    else:
        assert_equal(run, whole)
    tally.add(f"SIGTERM in {phase} (exit code 0, slowest {slowest:.1f} s)", 10, 10, "nothing")


def _reached(job: ForkedJob, phase: str, step: int) -> bool:
    beats = [job.heartbeat(rank) for rank in (0, 1)]
    return all(beat is not None and (beat.step, beat.beats) >= (step, 1) for beat in beats)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_in_rollouts(tmp_path: Path, words: list[str], reference: Path) -> None:
    generator, run = random.Random(7), tmp_path / "run"
    start = max((reference / "checkpoints").glob("step_*"))
    command = [
        *words,
        *REPLAY,
        "parallel.dp_shard=2",
        f"train.init_from={start}",
        "rl.steps=24",
        "checkpoint.every=100",
    ]
    for number in range(1, 11):
        fault = f"{generator.randrange(2)} {2 * number} rollout term {generator.choice([0, generator.random()]) / 50}"
        with ForkedJob(command, tmp_path, fault, module="farside.rl.train") as job:
            assert job.wait() == [0, 0], job.said()
        ended = status(run)
        assert ended["status"] == "stopped", job.said()
        assert 2 * number <= ended["step"] + 1
        assert ended["step"] == last_step(run) == saved(run)
    tally.add("SIGTERM in an RL rollout (exit code 0)", 10, 10, "nothing")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_thousand_steps_leak_nothing(tmp_path: Path, words: list[str]) -> None:
    command = [*words, "parallel.dp_shard=2", "train.steps=1000", "checkpoint.every=100", "run.dir=run"]
    command += ["data.global_batch_size=2", "data.micro_batch_size=1", "logging.every=100"]
    shared = set(os.listdir("/dev/shm"))
    measured: list[dict[str, Any]] = []
    with ForkedJob(command, tmp_path) as job:
        for step in (200, 990):
            job.until(lambda step=step: last_step(tmp_path / "run") >= step, 300)  # type: ignore[misc]
            measured.append({process.pid: _resources(process.pid or 0) for process in job.ranks})
        assert job.wait() == [0, 0], job.said()
        assert job.gone()
    growth = max(late[0] / early[0] for early, late in zip(*(each.values() for each in measured), strict=True)) - 1
    files = [[each[1] for each in moment.values()] for moment in measured]
    assert growth < 0.05, measured
    assert files[0] == files[1], measured
    assert set(os.listdir("/dev/shm")) - shared == set()
    tally.add(f"1,000 steps: memory {growth:+.1%} from step 200 on, open files unchanged", 1, 1, "nothing")


def _resources(pid: int) -> tuple[int, int]:
    """(resident bytes, open files) of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wandb_in_a_black_hole(tmp_path: Path, words: list[str]) -> None:
    """The same curve; how much longer a step takes is told, not judged: other jobs share this machine."""
    hole = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    medians = {}
    for mode in ("off", "online"):
        command = ["train", *words, "train.steps=150", f"logging.wandb={mode}", f"run.dir={mode}"]
        done = farside(command, tmp_path, **(hole if mode == "online" else {}))
        assert done.returncode == 0, done.stderr
        medians[mode] = statistics.median(line["seconds"] for line in read_metrics(tmp_path / mode / "metrics.jsonl"))
    assert sequence(tmp_path / "online") == sequence(tmp_path / "off")
    longer = medians["online"] / medians["off"] - 1
    tally.add(f"W&B in a black hole (median step {longer:+.1%})", 1, 1, "nothing: the same curve")
