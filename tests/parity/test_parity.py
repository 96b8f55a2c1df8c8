"""The parity matrix: every layout computes what one process computes."""

from collections.abc import Iterator

import pytest

from tests.parity.cells import Cell, errors, train
from tests.parity.matrix import MEMORY, SHORT, cover, low_precision
from tests.ranks import RankPool

FP64 = {"loss": 1e-12, "gradient": 1e-10, "weight": 1e-9}
BOUNDS = {
    "float32": {"loss": 1e-6, "gradient": 1e-5, "weight": 1e-6},
    "bfloat16": {"loss": 1e-2, "gradient": 3e-1, "weight": 1e-2},
}
"""Of a layout in low precision to one process in fp64: docs/parity.md measures one process alone at 5e-6 and 1e-1."""
MATRIX = cover()


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.name)
def test_layout_equals_one_process(ranks: RankPool, cell: Cell) -> None:
    errors(cell, ranks.run(train, cell.ranks, cell, 2)).assert_within(**FP64)


def test_the_matrix_is_what_it_says() -> None:
    meshes = {tuple(vars(cell)[axis] > 1 for axis in ("dp_replicate", "dp_shard", "tp", "cp", "pp")) for cell in MATRIX}
    assert sum(sum(mesh) == 3 for mesh in meshes) >= 6
    assert sum(sum(mesh) == 2 for mesh in meshes) >= 9
    assert any((cell.tp, cell.pp, cell.cp) == (2, 2, 2) for cell in MATRIX)
    for name, values in {"kind": 4, "layout": 3, "schedule": 3, "documents": 3}.items():
        assert len({getattr(cell, name) for cell in MATRIX}) == values


@pytest.fixture(scope="module")
def eight() -> Iterator[RankPool]:
    pool = RankPool(8)
    yield pool
    pool.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", sorted({cell.ranks for cell in MATRIX}))
@pytest.mark.parametrize("share", range(4))
def test_every_cell_equals_one_process(eight: RankPool, size: int, share: int) -> None:
    cells = [cell for cell in MATRIX if cell.ranks == size][share::4]
    for cell in cells:
        errors(cell, eight.run(train, size, cell, deadline=120.0)).assert_within(**FP64)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_way_to_keep_less_equals_one_process(eight: RankPool) -> None:
    for cell in MEMORY:
        errors(cell, eight.run(train, cell.ranks, cell, deadline=120.0)).assert_within(**FP64)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_low_precision_stays_within_its_bounds(eight: RankPool) -> None:
    for cell in low_precision():
        errors(cell, eight.run(train, cell.ranks, cell, deadline=120.0)).assert_within(**BOUNDS[cell.dtype])
