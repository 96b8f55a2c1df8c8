"""A checkpoint of any mesh loads into any other: weights and moments bit for bit, the next loss to rounding."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from farside.configs.schema import CheckpointConfig
from farside.parallel.mesh import ParallelDims
from farside.train.checkpoint.format import read
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from tests.parallel.training import digest, rows_of, state_digest
from tests.parity.cells import ROWS, Cell, batch_of, config_of
from tests.ranks import Rank, RankPool

LAYOUTS = {
    "one": Cell(),
    "fsdp2": Cell(dp_shard=2),
    "replicate2": Cell(dp_replicate=2),
    "tp2": Cell(tp=2),
    "pp2": Cell(pp=2),
    "cp2": Cell(cp=2),
    "tp2 pp2": Cell(tp=2, pp=2, schedule="interleaved"),
    "replicate2 tp2": Cell(dp_replicate=2, tp=2),
    "fsdp2 tp2": Cell(dp_shard=2, tp=2),
}
"""Of the model's 37 rows of the embedding tp2 holds 19 and 18, fsdp2 tp2 10, 9, 10 and 8."""


@dataclass(frozen=True)
class Seen:
    """One rank's state when saved or loaded, and what its next step gave."""

    state: str
    loss: float
    after: str


def train_step(engine: NativeEngine, cell: Cell, step: int) -> float:
    rows = ROWS // engine.mesh.dp_size
    batch = batch_of(cell, step)
    mine = rows_of(batch, slice(engine.mesh.dp_rank * rows, (engine.mesh.dp_rank + 1) * rows))
    loss = engine.forward_backward([mine], lm_loss, batch.weight).loss.item()
    engine.step(1e-2)
    return loss


def engine_of(place: Rank, cell: Cell, seed: int) -> NativeEngine:
    config = config_of(cell)
    config.train.seed = seed
    mesh = ParallelDims.resolve(config.parallel, place.world_size).build("cpu")
    return NativeEngine(config, mesh, torch.device("cpu"))


def store_of(engine: NativeEngine, directory: Path) -> CheckpointStore:
    return CheckpointStore(directory, CheckpointConfig(), engine.mesh.world, {"model": "test"})


def save(place: Rank, cell: Cell, directory: Path) -> Seen:
    engine = engine_of(place, cell, 0)
    for step in range(2):
        train_step(engine, cell, step)
    store = store_of(engine, directory)
    store.save(engine, 2, {})
    seen = Seen(state_digest(engine), train_step(engine, cell, 2), state_digest(engine))
    store.finish()
    return seen


def load(place: Rank, cell: Cell, directory: Path) -> Seen:
    engine = engine_of(place, cell, 99)
    assert store_of(engine, directory).resume(engine) is not None
    return Seen(state_digest(engine), train_step(engine, cell, 2), state_digest(engine))


def check(ranks: RankPool, directory: Path, source: str, targets: list[str], optimizer: str, tied: bool) -> None:
    def cell(name: str) -> Cell:
        return replace(LAYOUTS[name], optimizer=optimizer, tied=tied)

    saved = ranks.run(save, cell(source).ranks, cell(source), directory)[0]
    checkpoint = read(directory / "checkpoints" / "step_00000002")
    tensors = {name: digest(checkpoint.tensors(name)) for name in ("model", "optimizer")}
    assert saved.state == f"2 {tensors['model']} {tensors['optimizer']}", "one process reads what ranks wrote"
    for target in targets:
        for loaded in ranks.run(load, cell(target).ranks, cell(target), directory):
            assert loaded.state == saved.state, f"{source} to {target}"
            assert loaded.loss == pytest.approx(saved.loss, rel=1e-12), f"{source} to {target}"
            if source == target:
                assert loaded == saved, "the same mesh goes on bit for bit"


def test_a_small_cover_of_meshes(ranks: RankPool, tmp_path: Path) -> None:
    check(ranks, tmp_path, "fsdp2 tp2", ["one", "pp2"], "muon", tied=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_mesh_to_every_mesh(ranks: RankPool, tmp_path: Path, source: str, optimizer: str) -> None:
    """81 pairs with each optimizer; tied and untied output matrices in turn."""
    check(ranks, tmp_path, source, list(LAYOUTS), optimizer, tied=(list(LAYOUTS).index(source) % 2 == 0))
