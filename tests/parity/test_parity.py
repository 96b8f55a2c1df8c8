"""The parity matrix: every layout computes what one process computes."""

import pytest

from tests.parity.cells import Cell, errors, train
from tests.ranks import RankPool

CELLS = [
    Cell(tp=2),
    Cell(tp=4, tied=False, optimizer="muon", pieces=3),
    Cell(cp=2),
    Cell(cp=2, kind="allgather", layout="contiguous", documents="padded", tied=False),
    Cell(cp=2, kind="ulysses", layout="balanced", optimizer="muon"),
    Cell(cp=4, kind="hybrid", documents="one", pieces=3),
    Cell(cp=4, documents="padded", weights="half"),
    Cell(dp_shard=2, tp=2, weights="half", optimizer="muon"),
    Cell(dp_shard=2, cp=2, layout="balanced", pieces=3),
    Cell(dp_replicate=2, cp=2, optimizer="muon", tied=False),
    Cell(dp_replicate=2, tp=2),
    Cell(cp=2, tp=2, optimizer="muon", documents="padded"),
    Cell(pp=2, pieces=3),
    Cell(pp=2, tied=False, schedule="interleaved", optimizer="muon", weights="half"),
    Cell(pp=2, schedule="zbv", pieces=4),
    Cell(pp=4, optimizer="muon"),
    Cell(dp_shard=2, pp=2, pieces=3),
    Cell(dp_shard=2, pp=2, schedule="zbv", optimizer="muon"),
    Cell(tp=2, pp=2, schedule="interleaved", pieces=2),
    Cell(cp=2, pp=2, documents="padded", layout="balanced", tied=False),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_layout_equals_one_process(ranks: RankPool, cell: Cell) -> None:
    found = errors(cell, ranks.run(train, cell.ranks, cell))
    assert found.loss <= 1e-12, found
    assert found.grad_norm <= 1e-11, found
    assert found.gradient <= 1e-10, found
    assert found.weight <= 1e-9, found
