"""One prepared data folder and one finished run for all command tests."""

from pathlib import Path

import pytest

from tests.conftest import once
from tests.faults.driver import farside


@pytest.fixture(scope="session")
def corpus(small_run: tuple[Path, list[str]]) -> Path:
    return small_run[0]


@pytest.fixture(scope="session")
def words(small_run: tuple[Path, list[str]]) -> list[str]:
    """Overrides of a one-rank run of 4 steps on prepared data."""
    return [*small_run[1], "train.steps=4", "checkpoint.every=2"]


@pytest.fixture(scope="session")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished run; tests leave it as it is."""

    def make(folder: Path) -> None:
        done = farside(["train", *words, "run.dir=run"], folder)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "finished", make) / "run"
