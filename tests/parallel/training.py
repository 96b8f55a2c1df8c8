"""A few fp64 training steps on some mesh, as the ranks of a pool run them."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from farside.configs.schema import CheckpointConfig, Config, Dtype, OptimConfig, OptimKind, ParallelConfig, Recompute
from farside.data.batch import Batch
from farside.parallel import comm
from farside.parallel.box import Box, Piece
from farside.parallel.mesh import Mesh, ParallelDims
from farside.train.checkpoint.store import CheckpointStore
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from tests.ranks import Rank
from tests.train.models import SMALL, random_batch, small_config

MODEL = replace(SMALL, num_key_value_heads=1, qk_norm=True)
"""Over four ranks its 6 rows of keys are cut 2, 2, 2, 0 and its 37 of the embedding 10, 10, 10, 7."""
ROWS, SEQ_LEN, CLIP = 12, 10, 0.05
WITHOUT_WEIGHT = [(), (0, 1, 2, 3, 4, 5), (9, 10, 11)]
"""Rows that count nothing in each step: of two ranks the first, then of four ranks the last, has no weight at all."""


@dataclass(frozen=True)
class Trained:
    """What one rank saw. weights: whole tensors, on rank 0 only."""

    initial: str
    losses: list[float]
    grad_norms: list[float]
    final: str
    weights: dict[str, Tensor]


def batch_of(step: int) -> Batch:
    batch = random_batch(100 + step, ROWS, SEQ_LEN)
    weights = batch.weights.clone()
    weights[list(WITHOUT_WEIGHT[step])] = 0.0
    return replace(batch, weights=weights)


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(**{name: value[rows] for name, value in vars(batch).items() if name != "extras"})


def config_of(kind: OptimKind, seed: int = 0, dtype: Dtype = Dtype.float64) -> Config:
    config = small_config(MODEL, dtype)
    # a large eps makes Adam's update depend on the gradient's scale, so that clipping shows
    config.optim = OptimConfig(kind=kind, clip_norm=CLIP, eps=1e-3)
    config.train.seed = seed
    return config


def mesh_of(place: Rank, replicate: int, shard: int) -> Mesh:
    return ParallelDims.resolve(ParallelConfig(replicate, shard), place.world_size).build("cpu")


def digest(tensors: dict[str, Tensor]) -> str:
    """Hash of names, shapes and every bit."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def train_step(engine: NativeEngine, step: int, pieces: int) -> tuple[float, float]:
    """(loss, grad norm) of one step with this rank's rows in ``pieces`` micro-batches, equal or not."""
    rows = ROWS // engine.mesh.dp_size
    first = engine.mesh.dp_rank * rows
    batch = batch_of(step)
    mine = [rows_of(batch, slice(first + n * rows // pieces, first + (n + 1) * rows // pieces)) for n in range(pieces)]
    outputs = engine.forward_backward(mine, lm_loss, batch.weight)
    return outputs.loss.item(), engine.step(1e-2 / (step + 1)).grad_norm.item()


def train(
    place: Rank,
    replicate: int,
    shard: int,
    kind: OptimKind,
    pieces: int,
    dtype: Dtype = Dtype.float64,
    recompute: Recompute = Recompute.none,
    compile: bool = False,
) -> Trained:
    config = config_of(kind, dtype=dtype)
    config.train.activation_checkpointing, config.train.compile = recompute, compile
    engine = NativeEngine(config, mesh_of(place, replicate, shard), torch.device("cpu"))
    initial = digest(dict(engine.named_weights()))
    seen = [train_step(engine, step, pieces) for step in range(len(WITHOUT_WEIGHT))]
    final = dict(engine.named_weights())
    kept = final if place.rank == 0 else {}
    return Trained(initial, [loss for loss, _ in seen], [norm for _, norm in seen], digest(final), kept)


def store_of(directory: Path, mesh: Mesh) -> CheckpointStore:
    return CheckpointStore(directory, CheckpointConfig(), mesh.world, {"model": "test"})


def save(place: Rank, directory: Path, kind: OptimKind, dtype: Dtype = Dtype.float64) -> tuple[str, str]:
    """Two steps, a checkpoint, a third step: (state saved, state after the third)."""
    mesh = mesh_of(place, 1, place.world_size)
    engine = NativeEngine(config_of(kind, dtype=dtype), mesh, torch.device("cpu"))
    for step in range(2):
        train_step(engine, step, 1)
    store = store_of(directory, mesh)
    store.save(engine, 2, {"tokens": 7})
    saved = state_digest(engine)
    train_step(engine, 2, 1)
    store.finish()
    return saved, state_digest(engine)


def load(
    place: Rank, directory: Path, kind: OptimKind, replicate: int, dtype: Dtype = Dtype.float64
) -> tuple[str, str, int]:
    """The checkpoint in an engine of other initial weights: (state loaded, state after the third step, step)."""
    mesh = mesh_of(place, replicate, place.world_size // replicate)
    engine = NativeEngine(config_of(kind, 99, dtype), mesh, torch.device("cpu"))
    checkpoint = store_of(directory, mesh).resume(engine)
    assert checkpoint is not None
    loaded = state_digest(engine)
    train_step(engine, 2, 1)
    return loaded, state_digest(engine), checkpoint.step


def whole_state(engine: NativeEngine) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Whole weights, whole moments, updates, from the pieces that the ranks would save: every element by one of them.
    Weights are as ``named_weights`` gathers them. Collective."""
    state = engine.state_dict()
    model, optimizer = (assemble(pieces, engine.mesh.world) for pieces in (state.model, state.optimizer))
    assert digest(model) == digest(dict(engine.named_weights()))
    return model, optimizer, state.updates


def assemble(pieces: dict[str, Piece], group: comm.Group) -> dict[str, Tensor]:
    wholes: dict[str, Tensor] = {}
    covered: dict[str, Tensor] = {}
    for held in comm.gather_objects(pieces, group):
        for name, piece in held.items():
            where = piece.box.within(Box.whole(piece.whole))
            wholes.setdefault(name, piece.values.new_empty(piece.whole))[where] = piece.values.detach()
            covered.setdefault(name, torch.zeros(piece.whole))[where] += 1
    assert all(bool((count == 1).all()) for count in covered.values())
    return wholes


def state_digest(engine: NativeEngine) -> str:
    model, optimizer, updates = whole_state(engine)
    return f"{updates} {digest(model)} {digest(optimizer)}"


def fail_on_rank_zero(place: Rank, directory: Path) -> str:
    """Saving into a path that is a file: what every rank is told."""
    mesh = mesh_of(place, 1, place.world_size)
    engine = NativeEngine(config_of(OptimKind.adamw), mesh, torch.device("cpu"))
    try:
        store_of(directory / "file", mesh).save(engine, 1, {})
    except OSError as error:
        return str(error)
    comm.barrier(mesh.world)
    return "saved"
