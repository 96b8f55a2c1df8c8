"""One cell of the parity matrix: a layout trains a small model for three steps, and so does one process; fp64.

Every rank of the layout reports loss, gradient norms, whole gradients of the first step and whole weights after the
last. Clipping is active in every step.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from farside.configs.layout import check_layout
from farside.configs.schema import (
    Config,
    ContextConfig,
    ContextKind,
    ContextLayout,
    Dtype,
    ModelConfig,
    OptimConfig,
    OptimKind,
    ParallelConfig,
    PipelineConfig,
    PipelineSchedule,
    Recompute,
)
from farside.data.batch import Batch
from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss
from tests.parallel.training import digest
from tests.ranks import Rank
from tests.train.models import SMALL, random_sample, small_config

ROWS, SEQ_LEN, STEPS, CLIP = 12, 48, 3, 0.05
MODEL = replace(
    SMALL,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=4,
    intermediate_size=20,
    qk_norm=True,
    num_hidden_layers=4,
)
DOCUMENTS = {
    "one": [[SEQ_LEN]],
    "odd": [[1, 7, 13, 3, 19, 5], [11, 37], [SEQ_LEN], [2, 3, 43]],
    "padded": [[5, 9], [SEQ_LEN], [1], [23, 11]],  # what is missing is padding: ranks whose queries see nothing
}


@dataclass(frozen=True)
class Cell:
    """degrees as in ParallelConfig; documents: a key of DOCUMENTS; weights "half": half of the rows, and so whole
    ranks, count nothing; chunk, recompute, offload: keys of ``TrainConfig`` that change memory alone."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    kind: str = "ring"
    layout: str = "zigzag"
    documents: str = "odd"
    weights: str = "all"
    tied: bool = True
    pieces: int = 1
    optimizer: str = "adamw"
    schedule: str = "1f1b"
    dtype: str = "float64"
    chunk: int = 0
    recompute: str = "none"
    offload: bool = False

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def name(self) -> str:
        axes = [f"{axis}{getattr(self, axis)}" for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp")]
        used = [axis for axis in axes if not axis.endswith("1")]
        context = [self.kind, self.layout] if self.cp > 1 else []
        context += [self.schedule] if self.pp > 1 else []
        flags = [self.documents, self.weights, "tied" if self.tied else "untied", f"x{self.pieces}", self.optimizer]
        flags += [f"mlp/{self.chunk}"] if self.chunk else []
        flags += [f"recompute {self.recompute}"] if self.recompute != "none" else []
        flags += ["offload"] if self.offload else []
        return " ".join([*used, *context, *flags, *([] if self.dtype == "float64" else [self.dtype])])

    def alone(self) -> "Cell":
        """The same training on one process."""
        return replace(
            self,
            dp_replicate=1,
            dp_shard=1,
            cp=1,
            tp=1,
            pp=1,
            kind="ring",
            layout="zigzag",
            pieces=1,
            schedule="1f1b",
            dtype="float64",
            chunk=0,
            recompute="none",
            offload=False,
        )


@dataclass(frozen=True)
class Trained:
    """initial: hash of the gathered weights before the first step. Tensors are on rank 0 only."""

    initial: str
    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def config_of(cell: Cell) -> Config:
    model: ModelConfig = replace(MODEL, tie_word_embeddings=cell.tied)
    config = small_config(model, Dtype[cell.dtype])
    # a large eps makes Adam's update depend on the gradient's scale, so that clipping shows
    config.optim = OptimConfig(kind=OptimKind[cell.optimizer], clip_norm=CLIP, eps=1e-3)
    config.train.mlp_chunk, config.train.offload_activations = cell.chunk, cell.offload
    config.train.activation_checkpointing = Recompute[cell.recompute]
    context = ContextConfig(ContextKind[cell.kind], ContextLayout[cell.layout])
    config.parallel = ParallelConfig(
        cell.dp_replicate,
        cell.dp_shard,
        cell.cp,
        cell.tp,
        cell.pp,
        context,
        PipelineConfig(PipelineSchedule[cell.schedule]),
    )
    check_layout(config)
    return config


def batch_of(cell: Cell, step: int) -> Batch:
    generator = np.random.default_rng(step)
    rows = DOCUMENTS[cell.documents]
    samples = [random_sample(generator, rows[row % len(rows)], MODEL.vocab_size, SEQ_LEN) for row in range(ROWS)]
    batch = Batch.of(samples)
    kept = torch.from_numpy(generator.random((ROWS, SEQ_LEN))) < 0.8
    if cell.weights == "half":
        kept[ROWS // 2 :] = False
    return replace(batch, weights=batch.weights.double() * kept)


def train(place: Rank, cell: Cell, steps: int = STEPS) -> Trained:
    config = config_of(cell)
    mesh = ParallelDims.resolve(config.parallel, place.world_size).build("cpu")
    engine = NativeEngine(config, mesh, torch.device("cpu"))
    initial = digest(dict(engine.named_weights()))
    losses, norms, gradients = [], [], {}
    for step in range(steps):
        batch = batch_of(cell, step)
        share = ROWS // mesh.dp_size
        size = share // cell.pieces
        mine = [
            Batch(**{name: value[first : first + size] for name, value in vars(batch).items() if name != "extras"})
            for first in range(mesh.dp_rank * share, (mesh.dp_rank + 1) * share, size)
        ]
        losses.append(engine.forward_backward(mine, lm_loss, batch.weight).loss.item())
        if step == 0:
            gradients = {name: value.clone() for name, value in engine.named_gradients()}
        norms.append(engine.step(1e-2).grad_norm.item())
    kept = place.rank == 0
    weights = dict(engine.named_weights())
    return Trained(initial, losses, norms, gradients if kept else {}, weights if kept else {})


@cache
def alone(cell: Cell, steps: int) -> Trained:
    return train(Rank(0, 1), cell.alone(), steps)


@dataclass(frozen=True)
class Errors:
    """Largest relative differences to one process, over ranks and parameters. worst: the parameter of ``gradient``.
    initial: whether every rank began with the weights of one process, bit for bit."""

    loss: float
    grad_norm: float
    gradient: float
    weight: float
    worst: str
    initial: bool

    def assert_within(self, loss: float, gradient: float, weight: float) -> None:
        assert self.initial, "initial weights depend on the mesh"
        assert self.loss <= loss, self
        assert self.grad_norm <= gradient, self
        assert self.gradient <= gradient, self
        assert self.weight <= weight, self


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def errors(cell: Cell, results: list[Trained]) -> Errors:
    wanted = alone(cell.alone(), len(results[0].losses))
    numbers = {
        name: max(
            abs(found - true) / abs(true)
            for result in results
            for found, true in zip(getattr(result, name), getattr(wanted, name), strict=True)
        )
        for name in ("losses", "grad_norms")
    }
    first = results[0]
    assert first.gradients.keys() == wanted.gradients.keys() == first.weights.keys() == wanted.weights.keys()
    by_name = {name: relative(first.gradients[name], true) for name, true in wanted.gradients.items()}
    worst = max(by_name, key=lambda name: by_name[name])
    weight = max(relative(first.weights[name], true) for name, true in wanted.weights.items())
    initial = cell.dtype != "float64" or {result.initial for result in results} == {wanted.initial}
    return Errors(numbers["losses"], numbers["grad_norms"], by_name[worst], weight, worst, initial)
