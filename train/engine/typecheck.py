"""Whether the layout of a configuration is sound by its types: a model of one or two layers a stage, on one process.

What runs is the engine's own path of a micro-batch, from the cut of the batch to the scalar that is differentiated,
with the real groups of the real degrees; the ranks exist in name only. FSDP2 and the pipeline's schedule do not run:
stages follow one another, and of FSDP2 what counts is over which axes it sums.

Shapes: B rows, S positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farside.configs.layout import check_layout
from farside.configs.schema import Config, Dtype, ModelConfig
from farside.data.batch import Batch, document_sample
from farside.parallel import comm
from farside.parallel.context.build import build
from farside.parallel.mesh import Mesh, ParallelDims
from farside.parallel.plan import ShardTable
from farside.parallel.tensor import ShardedTensors, TensorParallel, WholeTensors
from farside.parallel.types import MeshTypes, TypeMismatch
from farside.train.engine.native import NativeEngine
from farside.train.engine.parallelize import parts_of_model
from farside.train.engine.stages import Item, ItemLoss
from farside.train.loss import LossFn, lm_loss
from farside.train.model.heads import TokenOutputs
from farside.train.model.mlp import MLP
from farside.train.model.transformer import Transformer

DATA = {"dp": "V", "cp": "V", "tp": "R"}
"""Tokens, positions, labels of this rank: tensor-parallel ranks hold the same."""
ROWS = {"dp": "V", "cp": "R", "tp": "R"}
"""Whole rows, as a loss sees them beside the outputs."""
BETWEEN = {"dp": "V", "cp": "V", "tp": "V"}
"""Hidden states between blocks and stages: tensor parallelism cuts the sequence there."""
LOSS = {"dp": "V", "cp": "I", "tp": "I"}
"""The scalar to differentiate: of this rank's rows alone (dp: to be summed once, by the engine), and the same on all
ranks that share them, gradient included, so that no rank counts it again."""


def check_types(config: Config, world_size: int) -> list[str]:
    """One line for each stage that passed. Raises TypeMismatch, naming axis and types, or UserError for degrees that do
    not fit model or world. Takes seconds and the memory of a tiny model, whatever ``world_size``."""
    dims = ParallelDims.resolve(config.parallel, world_size)
    check_layout(config)
    if world_size == 1:
        return ["one rank: nothing is divided"]
    with comm.fake_ranks(world_size):
        return check_loss(shrunken(config), dims.build("cpu"), lm_loss)


def check_loss(config: Config, mesh: Mesh, loss_fn: LossFn, head: str = "lm") -> list[str]:
    """``check_types`` of one loss on a mesh that stands; the model is allocated as large as it is."""
    engine, batch = TypedEngine(config, mesh, head), example_batch(config)
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            engine.typed.types.mark(value, ROWS)
    engine.forward_backward([batch], loss_fn, batch.weight)
    return engine.typed.passed


def shrunken(config: Config) -> Config:
    """The same degrees and heads with at most two layers a stage and the least widths that still divide."""
    stages, tp, model = len(parts_of_model(config, "lm")), config.parallel.tp, config.model
    least: ModelConfig = replace(
        model,
        num_hidden_layers=min(model.num_hidden_layers, 2 * stages if stages == 1 else stages),
        hidden_size=8,
        head_dim=2,
        intermediate_size=2 * tp,
        vocab_size=4 * tp - (1 if model.vocab_size % tp else 0),
    )
    return replace(config, model=least, train=replace(config.train, dtype=Dtype.float32))


def example_batch(config: Config) -> Batch:
    """One row: a document cut by every edge between ranks, a short one, and padding."""
    size = 4 * config.parallel.pieces
    starts = np.zeros(size + 1, dtype=bool)
    starts[[0, size // 2, size - 1]] = True
    weights = np.ones(size + 1, dtype=np.float32)
    weights[1] = 0.0  # so that not every token is counted
    sample = document_sample(np.zeros(size + 1, dtype=np.int64), weights, starts)
    sample.doc_ids[-1] = -1
    return Batch.of([sample])


class TypedEngine(NativeEngine):
    """The native engine with stages that check types instead of differentiating; it holds no optimizer."""

    def __init__(self, config: Config, mesh: Mesh, head: str) -> None:
        self.config, self.mesh, self.device, self.head = config, mesh, torch.device("cpu"), head
        kind, layout = config.parallel.context.kind.value, config.parallel.context.layout.value
        self.context = build(kind, layout, mesh.cp, mesh.ring, mesh.ulysses)
        self.typed = TypedStages(config, mesh, head)
        self.stages, self.weights = self.typed, _NothingToSum()  # type: ignore[assignment]


class TypedStages:
    """Implements ``forward_backward`` of ``Stages``: all stages of the pipeline on this process, one after the other,
    up to the loss. passed: a line for each."""

    def __init__(self, config: Config, mesh: Mesh, head: str) -> None:
        self.config, self.head, self.types = config, head, MeshTypes(mesh)
        self.tensors: TensorParallel = ShardedTensors(mesh.tp) if mesh.tp else WholeTensors()
        self.parts = parts_of_model(config, head)
        self.table = ShardTable({}, mesh)
        self.passed: list[str] = []

    def forward_backward(self, items: Sequence[Item], loss: ItemLoss) -> None:
        (item,) = items
        for tensor in (item.tokens, item.positions, item.labels, item.counted):
            if tensor is not None:
                self.types.mark(tensor, DATA)
        x, outputs = item.tokens, TokenOutputs()
        for number, part in enumerate(self.parts):
            stage = Transformer(self.config.model, self.head, tensors=self.tensors, part=part)
            for module in stage.modules():
                if isinstance(module, MLP):
                    module.chunk = self.config.train.mlp_chunk
            layers = f"layer{'s' if len(part.layers) > 1 else ''} {part.layers.start}" + (
                f" to {part.layers.stop - 1}" if len(part.layers) > 1 else ""
            )
            where = f"stage {number + 1} of {len(self.parts)} ({layers})"
            with explained(where):
                for name, parameter in stage.named_parameters():
                    self.types.mark(parameter, self.table.types(name))
                with self.types.checking():
                    x = stage.hidden(x, item.positions, item.attend)
                    if part.last:
                        outputs = stage.outputs(x, item.labels, entropy=True, counted_N=item.counted)
                self.types.expect(x, BETWEEN, "what it hands on")
            self.passed.append(f"{where}: hidden states {self._described(x)}")
        with explained("loss"):
            with self.types.checking():
                total = loss(outputs, 0)
            self.types.expect(total, LOSS, "the scalar to differentiate")
        self.passed.append(f"loss: {self._described(total)}")

    def _described(self, tensor: Tensor) -> str:
        return ", ".join(f"{name} {found}" for name, found in self.types.of(tensor).items())


class _NothingToSum:
    """In the place of ``Weights``: no gradients were computed."""

    def gradients(self) -> dict[str, Tensor]:
        return {}

    def complete_gradients(self) -> None:
        pass

    def from_last_stage(self, value: Any) -> Any:
        return value


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Says where a mismatch was found."""
    try:
        yield
    except TypeMismatch as error:
        raise TypeMismatch(f"{where}: {error}") from error.__cause__
