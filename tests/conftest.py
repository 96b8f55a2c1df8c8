"""What every test shares: the ``--all`` option, hypothesis settings, and a pool of gloo ranks."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: ranks and tests share few cores
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # layouts of the tests have more ranks than most machines have GPUs

import pytest
from hypothesis import settings

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


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """At most four gloo ranks, started when a test first asks for them."""
    pool = RankPool(4)
    yield pool
    pool.close()
