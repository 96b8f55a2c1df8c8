"""One prepared data folder and one finished run for all command tests."""

from pathlib import Path

import pytest

from tests.faults.driver import farside, small, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "en")


@pytest.fixture(scope="session")
def words(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a one-rank run of 4 steps on prepared data."""
    root = tmp_path_factory.mktemp("cli")
    overrides = small(corpus, root / "data")
    done = farside(["data", "prepare", *overrides], root)
    assert done.returncode == 0, done.stderr
    return [*overrides, "train.steps=4", "checkpoint.every=2"]


@pytest.fixture(scope="session")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished run; tests leave it as it is."""
    root = tmp_path_factory.mktemp("finished")
    done = farside(["train", *words, "run.dir=run"], root)
    assert done.returncode == 0, done.stderr
    return root / "run"
