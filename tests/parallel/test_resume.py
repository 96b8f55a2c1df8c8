"""A checkpoint of one layout in another: every tensor to the last bit, and the step that follows to rounding."""

from pathlib import Path

import pytest
import torch

from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from tests.parallel.training import state_digest, store_of
from tests.parity.cells import ROWS, Cell, batch_of, config_of
from tests.ranks import Rank, RankPool

SAVED = Cell(tp=2, pp=2)
OTHERS = [Cell(cp=2), SAVED]


def engine_of(place: Rank, cell: Cell, seed: int) -> NativeEngine:
    config = config_of(cell)
    config.train.seed = seed
    mesh = ParallelDims.resolve(config.parallel, place.world_size).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"))


def step(engine: NativeEngine, cell: Cell, number: int) -> tuple[float, float]:
    batch, share = batch_of(cell, number), ROWS // engine.mesh.dp_size
    rows = slice(engine.mesh.dp_rank * share, (engine.mesh.dp_rank + 1) * share)
    mine = type(batch)(**{name: value[rows] for name, value in vars(batch).items() if name != "extras"})
    loss = engine.forward_backward([mine], lm_loss, batch.weight).loss.item()
    return loss, engine.step(1e-2).grad_norm.item()


def save(place: Rank, directory: Path) -> tuple[str, tuple[float, float]]:
    """Two steps and a checkpoint: (what was saved, loss and gradient norm of the third step)."""
    engine = engine_of(place, SAVED, 0)
    for number in range(2):
        step(engine, SAVED, number)
    store = store_of(directory, engine.mesh)
    store.save(engine, 2, {})
    saved = state_digest(engine), step(engine, SAVED, 2)
    store.finish()
    return saved


def load(place: Rank, cell: Cell, directory: Path) -> tuple[str, tuple[float, float]]:
    """The same of an engine with other initial weights that takes the checkpoint."""
    engine = engine_of(place, cell, 99)
    assert store_of(directory, engine.mesh).resume(engine) is not None
    return state_digest(engine), step(engine, cell, 2)


@pytest.mark.slow
def test_other_layouts_go_on_from_a_checkpoint(ranks: RankPool, tmp_path: Path) -> None:
    ((state, third), *others) = ranks.run(save, SAVED.ranks, tmp_path)
    assert {other for other, _ in others} == {state}
    for cell in OTHERS:
        for found, (loss, grad_norm) in ranks.run(load, cell.ranks, cell, tmp_path):
            assert found == state, cell.name
            if cell == SAVED:
                assert (loss, grad_norm) == third, "the same layout goes on bit for bit"
            assert loss == pytest.approx(third[0], rel=1e-12)
            assert grad_norm == pytest.approx(third[1], rel=1e-10)
