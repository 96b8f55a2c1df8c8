"""What every test shares: the ``--all`` option, hypothesis settings, and a pool of gloo ranks."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: ranks and tests share few cores
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # layouts of the tests have more ranks than most machines have GPUs

import pytest
from hypothesis import settings

from tests.faults.driver import farside, small, write_corpus
from tests.ranks import RankPool

settings.register_profile("farside", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("farside")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow too")


LONGEST = ("test_resume", "test_learns", "test_parity", "test_commands", "test_report", "test_verify", "test_verifier")
"""Files that come first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if config.getoption("--all"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made once for all workers of this test session; they leave it as it is."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            shutil.rmtree(base / name, ignore_errors=True)
            (base / name).mkdir()
            make(base / name)
            (base / f"{name}.made").touch()
    return base / name


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A small corpus, and overrides of a one-rank run on it whose data are prepared."""

    def make(folder: Path) -> None:
        done = farside(["data", "prepare", *small(write_corpus(folder / "en"), folder / "data")], folder)
        assert done.returncode == 0, done.stderr

    folder = once(tmp_path_factory, "small", make)
    return folder / "en", small(folder / "en", folder / "data")


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """At most four gloo ranks, started when a test first asks for them."""
    pool = RankPool(4)
    yield pool
    pool.close()
