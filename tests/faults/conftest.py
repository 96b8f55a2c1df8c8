"""One prepared data folder and one uninterrupted two-rank run for all fault tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.driver import farside

STEPS = 60


@pytest.fixture(scope="session")
def words(small_run: tuple[Path, list[str]]) -> list[str]:
    """Overrides of a small run on prepared data."""
    return small_run[1]


@pytest.fixture(scope="session")
def two_ranks(words: list[str]) -> list[str]:
    return ["train", *words, "parallel.dp_shard=2", f"train.steps={STEPS}", "checkpoint.every=8", "run.dir=run"]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, two_ranks: list[str]) -> Path:
    """The run directory of ``two_ranks``, never interrupted."""
    root = tmp_path_factory.mktemp("reference")
    done = farside(two_ranks, root)
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture(scope="session", autouse=True)
def hang_ups_are_heard() -> Iterator[None]:
    """nohup has every child ignore SIGHUP, as it should: tests of hanging up must not depend on how they are run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
